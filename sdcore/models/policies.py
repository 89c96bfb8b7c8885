"""Policies on disk: loading models, attaching adapters, and saving weights whole or not at all.

Only safetensors are read or written and no remote code is run.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import (
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sdcore.config import LoraConfig, ModelConfig
from sdcore.distributed import collectives
from sdcore.errors import ModelError
from sdcore.models.adapters import require_adaptable

Policy: TypeAlias = PreTrainedModel | PeftModel
Tokenizer: TypeAlias = PreTrainedTokenizerBase

FULL_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"


def load_policy(folder: Path, model: ModelConfig) -> PreTrainedModel:
    """Load a causal language model from a local folder of safetensors, frozen and in eval mode.

    Raises:
        ModelError: the folder holds no model in safetensors, or the device is not there.
    """
    device = _device(model.device)
    loaded = _loaded(
        AutoModelForCausalLM.from_pretrained,
        folder,
        dtype=getattr(torch, model.dtype),
        use_safetensors=True,
        attn_implementation="sdpa",
    )
    return loaded.eval().requires_grad_(False).to(device)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a local model folder.

    Raises:
        ModelError: the folder holds no tokenizer.
    """
    return _loaded(AutoTokenizer.from_pretrained, folder)


def end_ids(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a response: the generation config's, else the tokenizer's.

    Raises:
        ModelError: neither names one.
    """
    ends: int | list[int] | None = load_tokenizer(folder).eos_token_id
    if (folder / "generation_config.json").exists():
        ends = _loaded(GenerationConfig.from_pretrained, folder).eos_token_id or ends
    if ends is None:
        raise ModelError("the model has no end token", where=str(folder))
    return (ends,) if isinstance(ends, int) else tuple(ends)


def attach_lora(model: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    """Attach a trainable adapter (arXiv 2106.09685): A drawn from the seed, B zero.

    The adapted policy is the base model until its first step. The global random state is left as
    it was.

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
    with torch.device("meta"):
        config = _loaded(AutoConfig.from_pretrained, folder)
        attach_lora(AutoModelForCausalLM.from_config(config), lora, seed=0)


def weights(policy: Policy) -> dict[str, Tensor]:
    """What a checkpoint of the policy holds: the adapter, or each of all weights once."""
    if isinstance(policy, PeftModel):
        return dict(get_peft_model_state_dict(policy))
    return {name: collectives.whole(weight.detach()) for name, weight in policy.named_parameters()}


def save_weights(policy: Policy, folder: Path) -> None:
    """Write the policy's weights and config to a folder, whole or not at all.

    PEFT's `from_pretrained` (adapter) and transformers' (full) read the folder.
    """
    with replacing(folder) as fresh:
        write_weights(policy, fresh)


def write_weights(policy: Policy, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Write the weights into an existing folder, as a part of a larger checkpoint.

    `tensors` is what `weights` gave, where all ranks had to join in and one writes.
    """
    tensors = weights(policy) if tensors is None else tensors
    if isinstance(policy, PeftModel):
        policy.active_peft_config.save_pretrained(folder)
        save_tensors(tensors, folder / ADAPTER_FILE)
    else:
        policy.config.save_pretrained(folder)
        save_tensors(tensors, folder / FULL_FILE)


def load_weights(policy: Policy, folder: Path) -> None:
    """Put the weights of a folder onto the policy, in place.

    Raises:
        ModelError: the folder holds no such weights, or they are not this policy's.
    """
    adapted = isinstance(policy, PeftModel)
    path = folder / (ADAPTER_FILE if adapted else FULL_FILE)
    stored = load_tensors(path)
    require_same(stored, weights(policy), path)
    if adapted:
        set_peft_model_state_dict(policy, stored)
    else:
        for name, weight in policy.named_parameters():
            weight.data.copy_(collectives.alike(stored[name], weight.data))


def weights_digest(folder: Path) -> str:
    """`digest` of the tensors in a folder's safetensors files.

    Raises:
        ModelError: there are none, or a file is damaged.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError("no safetensors to digest", where=str(folder))
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
            file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
            return _digest((name, file_of[name].get_tensor(name)) for name in sorted(file_of))
    except SafetensorError as error:
        raise ModelError("weights cannot be read", got=error, where=str(folder)) from error


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name: not of how they are stored."""
    return _digest(sorted(tensors.items()))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file; they may be views."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return dict(load_file(path))
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError("weights cannot be read", got=error, where=str(path)) from error


def require_same(stored: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors whose names or shapes are not those wanted.

    Raises:
        ModelError: naming the tensors that differ.
    """
    have = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    want = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if have != want:
        differing = sorted(dict(have.items() ^ want.items()))
        raise ModelError(
            "stored tensors are not this model's",
            got=f"{len(differing)} differ: {', '.join(differing)}",
            where=str(path),
            fix="load it onto the model and adapter that wrote it",
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a fresh sibling folder to fill; on success it is synced and takes the folder's place.

    A crash at any moment leaves the old folder, the new one, or none, but never a part of one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield fresh
        with ThreadPoolExecutor() as pool:  # flushes at the same time share the disk's commits
            list(pool.map(_sync, [*fresh.rglob("*"), fresh]))
        fresh.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            shutil.rmtree(folder.rename(f"{fresh}-old"))
        fresh.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ModelError("no CUDA device", fix="set model.device to auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _loaded(load: Callable[..., Any], folder: Path, **options: Any) -> Any:
    if not folder.is_dir():
        raise ModelError("no such model folder", got=folder)
    try:
        return load(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            "the folder holds no model that can be loaded",
            got=error,
            expected="a Hugging Face model folder with safetensors",
            where=str(folder),
        ) from error
