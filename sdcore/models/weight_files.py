"""The tensors of a policy in safetensors files: gathered, written, read, compared by digest.

Only safetensors are read or written.
"""

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdcore.distributed import collectives
from sdcore.errors import ModelError, listed
from sdcore.models import sealed
from sdcore.models.policies import Policy

FULL_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"


def gathered(policy: Policy) -> dict[str, Tensor]:
    """Tensors of a checkpoint: the adapter's, or every weight once where there is no adapter.

    Under torchrun all ranks join in, and the first one alone gets them.
    """
    return collectives.gathered(_held(policy).items())


def _held(policy: Policy) -> dict[str, Tensor]:
    """The tensors of a checkpoint as this rank holds them; the shapes are those of the whole."""
    if isinstance(policy, PeftModel):
        return dict(get_peft_model_state_dict(policy))
    return {name: weight.detach() for name, weight in policy.named_parameters()}


def write(policy: Policy, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write weights and config into an existing folder, which PEFT or transformers can then read.

    Args:
        policy: whose config is written.
        folder: usually one that `replacing` gave.
        tensors: what `gathered` gave.
    """
    if isinstance(policy, PeftModel):
        policy.active_peft_config.save_pretrained(folder)
        save_tensors(tensors, folder / ADAPTER_FILE)
    else:
        policy.config.save_pretrained(folder)
        save_tensors(tensors, folder / FULL_FILE)


def load(policy: Policy, folder: Path) -> None:
    """Copy the weights of a folder into the policy, in place.

    Raises:
        ModelError: see `read`.
    """
    put(policy, read(policy, folder))


def read(policy: Policy, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a folder for this policy, which stays as it is.

    Raises:
        ModelError: the folder holds no such weights, they differ from their digest, or their names
            or shapes are not this policy's.
    """
    path = folder / (ADAPTER_FILE if isinstance(policy, PeftModel) else FULL_FILE)
    sealed.require_intact(folder, path.name)
    stored = load_tensors(path)
    require_same(stored, _held(policy), path)
    return stored


def put(policy: Policy, stored: dict[str, Tensor]) -> None:
    """Copy what `read` returned into the policy, in place."""
    if isinstance(policy, PeftModel):
        set_peft_model_state_dict(policy, stored)
    else:
        for name, weight in policy.named_parameters():
            weight.data.copy_(collectives.alike(stored[name], weight.data))


def folder_digest(folder: Path) -> str:
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
            got=f"{len(differing)} differ: {listed(differing)}",
            where=str(path),
            fix="load it onto the model and adapter that wrote it",
        )


def require(folder: Path, sha256: str) -> None:
    """Refuse a folder that `replacing` wrote, unless it is intact and its weights are the expected.

    Raises:
        ModelError: a file is missing or differs from its digest, or `folder_digest` is another.
    """
    sealed.require_intact(folder)
    found = folder_digest(folder)
    if found != sha256:
        raise ModelError(
            "the folder holds other weights than the table `policies` says",
            got=found,
            expected=sha256,
            where=str(folder),
            fix=sealed.RESTORE,
        )
