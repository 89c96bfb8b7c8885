"""What an experiment file leaves to the machine, settled once for a run."""

from pathlib import Path

from flows.commands.terminal import notes
from sdcore.config import AUTO, Experiment
from sdcore.engines.choosing import KINDS, Choice, choice
from sdcore.models.folders import at_hand
from sdcore.store.database import Store
from sdcore.system import gpus


def settled(settings: Experiment, root: Path) -> Experiment:
    """Return the experiment with the engine that `engine.kind = "auto"` stands for, and say which.

    A run that the workspace has keeps the engine that it was started with, on whatever machine it
    goes on. A new one takes what this machine offers. The engine is part of the run's settings and
    so of its id: the same file on a laptop and on a GPU makes two runs.

    Args:
        settings: as its file says.
        root: the workspace.
    """
    if settings.engine.kind != AUTO:
        return settings
    chosen = chosen_here(settings)
    ids = {kind: settings.sampled_by(kind).experiment_id for kind in KINDS}
    stored = [kind for kind in KINDS if _is_stored(root, ids[kind])]
    if stored and chosen.kind not in stored:
        chosen = Choice(stored[0], f"{ids[stored[0]]} was started with it")
    notes.print(str(chosen), soft_wrap=True, highlight=False, markup=False)
    return settings.sampled_by(chosen.kind)


def chosen_here(settings: Experiment) -> Choice:
    """Return the engine that `auto` stands for in a new run on this machine."""
    folder, python = at_hand(settings.model.name), settings.engine.python
    return choice(settings.model, folder, python, gpus=len(gpus.visible()))


def _is_stored(root: Path, experiment_id: str) -> bool:
    path = root / "sdcore.duckdb"
    if not path.exists():
        return False
    with Store(path) as store:
        return not store.rows("experiments", experiment_id=experiment_id).is_empty()
