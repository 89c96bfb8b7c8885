"""Checkpoints of training: the weights, and in `trainer/` all else that resuming needs."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from sdcore.config import drift
from sdcore.distributed import collectives
from sdcore.errors import ModelError
from sdcore.models import sealed, weight_files
from sdcore.models.policies import Policy

STATE, ABOUT = Path("trainer", "state.safetensors"), Path("trainer", "state.json")


def write(
    folder: Path,
    policy: Policy,
    state: dict[str, Tensor] | None,
    step: int,
    settings: dict[str, Any],
) -> None:
    """Write a checkpoint whole or not at all; under torchrun all ranks join in and one writes.

    Without a state it has the weights alone: enough to sample from, not to train on.
    """
    weights = weight_files.gathered(policy)
    if collectives.rank_and_world_size()[0] == 0:
        about = {"step": step, "settings": settings}
        with sealed.replacing(folder) as fresh:
            weight_files.write(policy, fresh, weights)
            if state is not None:
                (fresh / STATE).parent.mkdir()
                weight_files.save_tensors(state, fresh / STATE)
                (fresh / ABOUT).write_text(json.dumps(about, indent=2), "utf-8")
    collectives.wait()


def read(folder: Path, settings: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Return step and state of a checkpoint; its weights are read by `weight_files.load`.

    Raises:
        ModelError: there is none, a file differs from its digest, or it was written under other
            settings.
    """
    if not (folder / ABOUT).is_file():
        raise ModelError("not a checkpoint to resume", got=f"no {ABOUT}", where=str(folder))
    sealed.require_intact(folder, ABOUT.as_posix(), STATE.as_posix())
    about = json.loads((folder / ABOUT).read_text("utf-8"))
    if drifted := drift(about["settings"], settings):
        raise ModelError(
            "the checkpoint was written under other settings",
            got="; ".join(drifted),
            where=str(folder),
            fix="resume with the checkpoint's settings, or start a new run",
        )
    return about["step"], weight_files.load_tensors(folder / STATE)


def has_state(folder: Path) -> bool:
    """Return whether training can go on from a checkpoint, or only its weights are there."""
    return sealed.has_file(folder, ABOUT.as_posix())


def state_bytes(folder: Path) -> int:
    """Return the size of what a checkpoint has besides its weights, also if that is a remainder."""
    return sum(path.stat().st_size for path in (folder / STATE.parent).rglob("*") if path.is_file())


def drop_state(folder: Path) -> int:
    """Leave the weights of a checkpoint alone; return the bytes that this frees.

    Raises:
        ModelError: the folder is no checkpoint.
    """
    freed = state_bytes(folder)
    sealed.remove_files(folder, ABOUT.as_posix(), STATE.as_posix())
    (folder / STATE.parent).rmdir()
    return freed


def require_whole(folder: Path, sha256: str) -> None:
    """Refuse a checkpoint that cannot be resumed as it was written.

    Raises:
        ModelError: a file is missing or differs from its digest, the digest of the weights is not
            `sha256`, or there are the weights alone.
    """
    weight_files.require(folder, sha256)
    if not has_state(folder):
        raise ModelError("the checkpoint has the weights alone", where=str(folder))
    sealed.require_intact(folder, ABOUT.as_posix(), STATE.as_posix())
