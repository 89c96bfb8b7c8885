"""Policies on disk: load models, attach adapters, write weights whole or not at all.

Only safetensors are read or written, and no remote code is run. A folder written here carries the
digest of each of its files, which is checked before the files are loaded.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date
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
from sdcore.models.chat_templates import require_bounded
from sdcore.models.folders import CONFIG, read_config
from sdcore.models.prompts import freeze_clock
from sdcore.system.private import private_files

Policy: TypeAlias = PreTrainedModel | PeftModel
Tokenizer: TypeAlias = PreTrainedTokenizerBase

FULL_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"
LAYERS = "num_hidden_layers"
MOST_LAYERS = 1000  # that are made without a look at the tensors; the deepest models have 200
MOST_LABELS = 100_000  # transformers makes a name for each
CHECKSUMS = "checksums.sha256"
"""Digests of a folder's other files, in the format of `sha256sum -c`."""
SHOWN = 8  # tensor names in an error
_RESTORE = "`sdcore resume RUN` retrains a checkpoint; restore other files from a copy"


def load_policy(folder: Path, model: ModelConfig) -> PreTrainedModel:
    """Load a causal language model from a local folder of safetensors, frozen and in eval mode.

    Raises:
        ModelError: the folder holds no model in safetensors, a file differs from its digest, the
            tensors are not exactly those of the architecture, the architecture does not support
            `model.attention`, or the device does not exist.
    """
    device = _device(model.device)
    if was_written_here(folder):
        require_intact(folder)
    _require_few_layers(folder)
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
    _require_complete(report, folder)
    _require_tied(loaded, folder)
    policy: PreTrainedModel = loaded.eval().requires_grad_(False).to(device)
    # Some configs fit the tensors and still describe no model, such as a head size that is odd.
    with _explained(folder, "a config.json that describes these weights"), torch.no_grad():
        policy(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
    return policy


def load_tokenizer(folder: Path, day: date | None = None) -> Tokenizer:
    """Load the tokenizer of a local model folder.

    Args:
        folder: the model folder.
        day: the date that a chat template gets when it reads the clock. Without one, such a
            template is refused when a prompt is rendered.

    Raises:
        ModelError: the folder holds no tokenizer, it makes no token of a text, or its chat template
            is endless.
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
    templates = tokenizer.chat_template or {}
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        require_bounded(template, folder)
    if day is not None:
        freeze_clock(tokenizer, day)
    return tokenizer


def end_ids(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a response: the generation config's, else the tokenizer's.

    Raises:
        ModelError: neither names one.
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
    if not all(isinstance(end, int) and end >= 0 for end in all_ends):
        raise ModelError(
            "the model's end tokens are not token ids",
            got=f"eos_token_id = {ends!r}",
            expected="a whole number from 0, or a list of them",
            where=str(folder / "generation_config.json"),
        )
    return all_ends


def context_length(folder: Path) -> int | None:
    """Positions of the model, prompt and response together; None where it has no limit.

    Raises:
        ModelError: the folder holds no model config.
    """
    config = _loaded(AutoConfig.from_pretrained, folder).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and (not isinstance(positions, int) or positions < 1):
        raise ModelError(
            "the model's config has no usable number of positions",
            got=f"max_position_embeddings = {positions!r}",
            expected="a whole number from 1",
            where=str(folder / "config.json"),
        )
    return positions


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
    _require_few_layers(folder)
    with torch.device("meta"):
        config = _loaded(AutoConfig.from_pretrained, folder)
        with _explained(folder, "a config.json that describes a causal language model"):
            model = AutoModelForCausalLM.from_config(config)
        attach_lora(model, lora, seed=0)


def weights(policy: Policy) -> dict[str, Tensor]:
    """Tensors of a checkpoint: the adapter's, or every weight once where there is no adapter.

    Under torchrun all ranks join in, and the first one alone gets them.
    """
    return collectives.gathered(_held(policy).items())


def _held(policy: Policy) -> dict[str, Tensor]:
    """The tensors of a checkpoint as this rank holds them; the shapes are those of the whole."""
    if isinstance(policy, PeftModel):
        return dict(get_peft_model_state_dict(policy))
    return {name: weight.detach() for name, weight in policy.named_parameters()}


def write_weights(policy: Policy, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write weights and config into an existing folder, which PEFT or transformers can then read.

    Args:
        policy: whose config is written.
        folder: usually one that `replacing` gave.
        tensors: the policy's `weights`.
    """
    if isinstance(policy, PeftModel):
        policy.active_peft_config.save_pretrained(folder)
        save_tensors(tensors, folder / ADAPTER_FILE)
    else:
        policy.config.save_pretrained(folder)
        save_tensors(tensors, folder / FULL_FILE)


def load_weights(policy: Policy, folder: Path) -> None:
    """Copy the weights of a folder into the policy, in place.

    Raises:
        ModelError: the folder holds no such weights, they differ from their digest, or their names
            or shapes are not this policy's.
    """
    adapted = isinstance(policy, PeftModel)
    path = folder / (ADAPTER_FILE if adapted else FULL_FILE)
    require_intact(folder, path.name)
    stored = load_tensors(path)
    require_same(stored, _held(policy), path)
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
    """SHA-256 over names, types, shapes and bytes, in order of name, however they are stored."""
    return _digest(sorted(tensors.items()))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    sha256 = hashlib.sha256()
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        sha256.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        sha256.update(plain.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


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
    """Refuse tensors whose names or shapes differ from those wanted.

    Raises:
        ModelError: names the tensors that differ.
    """
    have = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    want = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if have != want:
        differing = sorted(dict(have.items() ^ want.items()))
        raise ModelError(
            "stored tensors are not this model's",
            got=f"{len(differing)} differ: {_listed(differing)}",
            where=str(path),
            fix="load it onto the model and adapter that wrote it",
        )


def was_written_here(folder: Path) -> bool:
    """Return whether `replacing` wrote the folder, so that its files have digests."""
    return (folder / CHECKSUMS).exists()


def require_intact(folder: Path, *names: str) -> None:
    """Compare files of a folder that `replacing` wrote with the digests that it wrote beside them.

    Args:
        folder: the folder.
        names: paths of files below it; none means all that it was written with.

    Raises:
        ModelError: names the files that are missing or differ.
    """
    expected = _checksums(folder)
    damaged = [
        name
        for name in names or sorted(expected)
        if _digest_or_none(folder / name) != expected.get(name, "")
    ]
    if damaged:
        raise ModelError(
            "files are not as they were written",
            got=f"missing, unreadable or changed: {_listed(damaged)}",
            expected=f"the digests in {CHECKSUMS}",
            where=str(folder),
            fix=_RESTORE,
        )


def require_weights(folder: Path, sha256: str) -> None:
    """Refuse a folder that `replacing` wrote, unless it is intact and its weights are the expected.

    Raises:
        ModelError: a file is missing or differs from its digest, or `weights_digest` is another.
    """
    require_intact(folder)
    found = weights_digest(folder)
    if found != sha256:
        raise ModelError(
            "the folder holds other weights than the table `policies` says",
            got=found,
            expected=sha256,
            where=str(folder),
            fix=_RESTORE,
        )


def _digest_or_none(path: Path) -> str | None:
    """`file_digest`, or None for what cannot be read: a damaged disk gives an error too."""
    try:
        return file_digest(path)
    except OSError:
        return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a fresh sibling folder to fill; on success it is synced and takes the folder's place.

    The digests of its files are added in `CHECKSUMS`. A crash at any moment leaves the old folder,
    the new one, or none, but never a part of one. Only the owner can read it.
    """
    with private_files():
        folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with private_files():
            yield fresh
            _write_checksums(fresh)
        with ThreadPoolExecutor() as pool:  # flushes at the same time share the disk's commits
            list(pool.map(_sync, [*fresh.rglob("*"), fresh]))
        if os.path.lexists(folder):
            _remove(folder.rename(f"{fresh}-old"))
        fresh.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:  # where a folder should be, a damaged file system may have anything
        path.unlink()


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")


def remove_file(folder: Path, name: str) -> None:
    """Remove a file of a folder that `replacing` wrote; the folder is intact without it.

    Its digest goes first: after a crash in between there is a file too many, which nobody reads.

    Raises:
        ModelError: the folder has no checksums.
    """
    left = {path: sha256 for path, sha256 in _checksums(folder).items() if path != name}
    with private_files():
        fresh = folder / f".{CHECKSUMS}"
        fresh.write_text("".join(f"{sha256}  {path}\n" for path, sha256 in left.items()), "utf-8")
    _sync(fresh)
    fresh.replace(folder / CHECKSUMS)
    (folder / name).unlink(missing_ok=True)


def _checksums(folder: Path) -> dict[str, str]:
    """Digests by path below the folder."""
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        what = "the folder has no checksums" if folder.is_dir() else "no such folder"
        raise ModelError(what, got=error, where=str(folder), fix=_RESTORE) from error
    pairs = (line.partition("  ") for line in lines)
    digests = {name: sha256 for sha256, _, name in pairs}
    if not digests:
        raise ModelError("the folder has no checksums", where=str(folder), fix=_RESTORE)
    return digests


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ModelError("no CUDA device", fix="set model.device to auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _loaded(load: Callable[..., Any], folder: Path, fix: str = "", **options: Any) -> Any:
    if not folder.is_dir():
        raise ModelError("no such model folder", got=folder)
    _require_few_labels(folder)
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


def _require_few_labels(folder: Path) -> None:
    """Refuse a config.json that asks for more names of labels than can be made in bounded time."""
    if not (folder / CONFIG).is_file():
        return
    config = read_config(folder)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for labels in (part.get("num_labels") for part in parts):
        if isinstance(labels, int) and labels > MOST_LABELS:
            raise ModelError(
                "config.json asks for too many labels",
                got=f"num_labels = {labels}",
                expected=f"at most {MOST_LABELS}; a language model has none",
                where=str(folder / CONFIG),
                fix="take num_labels out",
            )


def _require_few_layers(folder: Path) -> None:
    """Refuse a config.json of more layers than there are tensors, which would be made for hours."""
    layers = getattr(_loaded(AutoConfig.from_pretrained, folder).get_text_config(), LAYERS, 0)
    tensors = 0
    with _explained(folder, "safetensors"):
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                tensors += len(file.keys())
    if isinstance(layers, int) and layers > max(tensors, MOST_LAYERS):
        raise ModelError(
            "the tensors in the folder are not those of the model that its config.json describes",
            got=f"{tensors} tensors for {LAYERS} = {layers}",
            where=str(folder),
            fix="download or save the model again, with the config.json that belongs to it",
        )


def _require_complete(report: dict[str, Any], folder: Path) -> None:
    """Refuse a model of which transformers made up weights or left some out.

    `report` is transformers' loading info: names of tensors by what is wrong with them. What an
    architecture leaves out on purpose, such as a tied head, is not in it.
    """
    wrong = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": [name for name, *_ in report["mismatched_keys"]],
    }
    if any(wrong.values()):
        raise ModelError(
            "the tensors in the folder are not those of the model that its config.json describes",
            got="; ".join(
                f"{len(names)} {kind}: {_listed(sorted(names))}"
                for kind, names in wrong.items()
                if names
            ),
            where=str(folder),
            fix="download or save the model again, with the config.json that belongs to it",
        )


def _require_tied(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a config that ties the head to the embedding beside weights that differ.

    transformers then loads them untied, and vLLM tied: two different policies.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and head is not None and head.weight is not embedding.weight:
        raise ModelError(
            "config.json ties the head to the embedding, and the folder has two that differ",
            where=str(folder),
            fix="set tie_word_embeddings to false in config.json, or remove the tensor that does "
            "not belong to the model",
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
