"""Models, tokenizers and adapters, loaded from local folders: safetensors only, no remote code."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import (
    PeftModel,
    TaskType,
    get_peft_model,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sdcore.config import LoraConfig, ModelConfig
from sdcore.errors import ModelError
from sdcore.models import sealed, soundness
from sdcore.models.adapters import require_adaptable
from sdcore.models.chat_templates import require_bounded
from sdcore.models.folders import CONFIG
from sdcore.models.prompts import freeze_clock

Policy: TypeAlias = PreTrainedModel | PeftModel
Tokenizer: TypeAlias = PreTrainedTokenizerBase

VOCABULARY = "vocab_size"


def load_policy(folder: Path, model: ModelConfig) -> PreTrainedModel:
    """Load a causal language model from a local folder of safetensors, frozen and in eval mode.

    Raises:
        ModelError: the folder holds no model in safetensors, a file differs from its digest, the
            tensors are not exactly those of the architecture, weights or logits are not finite,
            the architecture does not support `model.attention`, or the device does not exist.
    """
    device = _device(model.device)
    if sealed.was_written_here(folder):
        sealed.require_intact(folder)
    _require_sound(folder)
    loaded, report = _loaded(
        AutoModelForCausalLM.from_pretrained,
        folder,
        dtype=getattr(torch, model.dtype),
        use_safetensors=True,
        attn_implementation=None if model.attention == "auto" else model.attention,
        ignore_mismatched_sizes=True,  # to name them all in one error
        output_loading_info=True,
        fix="" if model.attention == "auto" else "try model.attention = 'auto'",
    )
    soundness.require_complete(report, folder)
    soundness.require_tied(loaded, folder)
    policy: PreTrainedModel = loaded.eval().requires_grad_(False).to(device)
    # Some configs fit the tensors and still describe no model, such as a head size that is odd.
    with _explained(folder, "a config.json that describes these weights"), torch.no_grad():
        ids = torch.zeros((1, 1), dtype=torch.long, device=device)
        logits = policy(input_ids=ids, use_cache=False).logits
    soundness.require_finite(policy, logits, folder)
    return policy


def load_tokenizer(folder: Path, day: date | None = None) -> Tokenizer:
    """Load the tokenizer of a local model folder.

    Args:
        folder: the model folder.
        day: the date that a chat template gets when it reads the clock. Without one, such a
            template is refused when a prompt is rendered.

    Raises:
        ModelError: the folder holds no tokenizer, or another model's; it makes no token of a text;
            or its chat template is endless or random.
    """
    tokenizer = _loaded(AutoTokenizer.from_pretrained, folder)
    with _explained(folder, "a tokenizer that reads text"):
        ids = tokenizer("1", add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelError(
            "the tokenizer makes no token of a text",
            got="none for 1",
            where=str(folder),
            fix="download or save the tokenizer again",
        )
    if (folder / CONFIG).is_file():
        soundness.require_known_tokens(tokenizer, vocabulary_size(folder), folder)
    templates = tokenizer.chat_template or {}
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        require_bounded(template, folder)
    if day is not None:
        freeze_clock(tokenizer, day)
    return tokenizer


def end_ids(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a response: the generation config's, else the tokenizer's.

    Raises:
        ModelError: neither names one, or one is no token of the model.
    """
    ends: Any = None
    if (folder / "generation_config.json").exists():
        ends = _loaded(GenerationConfig.from_pretrained, folder).eos_token_id
    if ends is None or ends == []:  # 0 is an id
        ends = load_tokenizer(folder).eos_token_id
    if ends is None:
        raise ModelError(
            "the model has no end token",
            where=str(folder),
            fix="set eos_token_id in its generation_config.json",
        )
    all_ends = tuple(ends) if isinstance(ends, list) else (ends,)
    size = vocabulary_size(folder)
    if not all(type(end) is int and 0 <= end < size for end in all_ends):
        raise ModelError(
            "the model's end tokens are not ids of its tokens",
            got=f"eos_token_id = {ends!r}",
            expected=f"a whole number from 0 to {size - 1}, or a list of them",
            where=str(folder / "generation_config.json"),
        )
    return all_ends


def vocabulary_size(folder: Path) -> int:
    """Tokens that the model knows, of which its tokenizer may use fewer.

    Raises:
        ModelError: the folder holds no model config, or one without this number.
    """
    size = getattr(_loaded(AutoConfig.from_pretrained, folder).get_text_config(), VOCABULARY, None)
    if type(size) is not int:
        raise ModelError(
            "the model's config has no number of tokens",
            got=f"{VOCABULARY} = {size!r}",
            where=str(folder / CONFIG),
        )
    return size


def context_length(folder: Path) -> int | None:
    """Positions of the model, prompt and response together; None where it has no limit.

    Raises:
        ModelError: the folder holds no model config.
    """
    limit = positions(_loaded(AutoConfig.from_pretrained, folder))
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ModelError(
            "the model's config has no usable number of positions",
            got=f"max_position_embeddings = {limit!r}",
            expected="a whole number from 1",
            where=str(folder / "config.json"),
        )
    return limit


def positions(config: PretrainedConfig) -> int | None:
    """Positions that a model's config names; None where it has no limit."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def attach_lora(model: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    """Attach a trainable adapter (arXiv 2106.09685): A drawn from the seed, B zero.

    The adapted policy equals the base model until its first step. The global random state does not
    change.

    Raises:
        ModelError: the model has none of the target modules, or one is no linear layer of its body.
    """
    config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        lora_dropout=0.0,
    )
    require_adaptable(model, lora)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT's
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config).eval()
        except ValueError as error:
            raise ModelError(
                "the adapter does not fit the model",
                got=error,
                expected=f"modules named {', '.join(lora.targets)}",
                fix="set training.lora.targets to the names of the model's linear layers",
            ) from error


def check_targets(folder: Path, lora: LoraConfig) -> None:
    """Attach the adapter to a model without weights, so that a misfit shows at the start.

    Raises:
        ModelError: see `attach_lora`.
    """
    _require_sound(folder)
    with torch.device("meta"):
        config = _loaded(AutoConfig.from_pretrained, folder)
        with _explained(folder, "a config.json that describes a causal language model"):
            model = AutoModelForCausalLM.from_config(config)
        attach_lora(model, lora, seed=0)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ModelError("no CUDA device", fix="set model.device to auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _loaded(load: Callable[..., Any], folder: Path, fix: str = "", **options: Any) -> Any:
    if not folder.is_dir():
        raise ModelError("no such model folder", got=folder)
    soundness.require_few_labels(folder)
    with _explained(folder, "a Hugging Face model folder with safetensors", fix):
        return load(folder, local_files_only=True, trust_remote_code=False, **options)


@contextmanager
def _explained(folder: Path, expected: str, fix: str = "") -> Iterator[None]:
    """Turn whatever transformers raises over a folder's files into a `ModelError`.

    It raises what it happens to meet: KeyError for a type that a file names, RuntimeError for
    shapes, ImportError for a library that a tokenizer needs, tokenizers a plain Exception.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        plain = isinstance(error, OSError | ValueError | SafetensorError)
        raise ModelError(
            "the folder holds no model that can be loaded",
            got=error if plain else f"{type(error).__name__}: {error}",
            expected=expected,
            where=str(folder),
            fix=fix,
        ) from error


def _require_sound(folder: Path) -> None:
    """Refuse a folder whose files are not a model's, before anything of their size is made."""
    soundness.require_weights_inside(folder)
    config = _loaded(AutoConfig.from_pretrained, folder).get_text_config()
    with _explained(folder, "safetensors"):
        soundness.require_weights(folder, config)
