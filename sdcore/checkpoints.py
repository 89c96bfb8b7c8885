"""Checkpoints of training: the weights, and in `trainer/` all else that resuming needs."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from sdcore import policies, ranks
from sdcore.errors import ModelError
from sdcore.policies import Policy

STATE, ABOUT = Path("trainer", "state.safetensors"), Path("trainer", "state.json")


def write(
    folder: Path, policy: Policy, state: dict[str, Tensor], step: int, settings: dict[str, Any]
) -> None:
    """Write a checkpoint whole or not at all; under torchrun all ranks join in and one writes."""
    weights = policies.weights(policy)
    if ranks.place()[0] == 0:
        about = {"step": step, "settings": settings}
        with policies.replacing(folder) as fresh:
            policies.write_weights(policy, fresh, weights)
            (fresh / STATE).parent.mkdir()
            policies.save_tensors(state, fresh / STATE)
            (fresh / ABOUT).write_text(json.dumps(about, indent=2), "utf-8")
    ranks.wait()


def read(folder: Path, settings: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Step and state of a checkpoint; its weights are read by `policies.load_weights`.

    Raises:
        ModelError: there is none, it is damaged, or it was written under other settings.
    """
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("not a checkpoint to resume", got=error, where=str(folder)) from error
    before, now = _flat(about["settings"]), _flat(settings)
    drifted = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if drifted:
        raise ModelError(
            "the checkpoint was written under other settings",
            got="; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in drifted),
            where=str(folder),
            mend="resume with the checkpoint's settings, or start anew",
        )
    return about["step"], policies.load_tensors(folder / STATE)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
