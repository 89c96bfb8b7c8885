"""Settle what an experiment file leaves open: which run it belongs to, and the engine of `auto`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flows.commands.terminal import notes
from sdcore.config import AUTO, Additions, Experiment, drift
from sdcore.engines.choosing import KINDS, Choice, choice
from sdcore.errors import ConfigError
from sdcore.models.folders import at_hand
from sdcore.store.database import Store
from sdcore.system import gpus

_FURTHEST_FIRST = """
    SELECT config FROM experiments e LEFT JOIN policies p USING (experiment_id)
    WHERE e.name = ? GROUP BY e.experiment_id, config, e.created_at
    ORDER BY count(p.policy_id) DESC, e.created_at DESC
"""
_NAMED = 5  # differences that an error names


@dataclass(frozen=True)
class Joined:
    """An experiment as part of a run: the settings of both, and what the run lacks, in words."""

    run: Experiment
    lacks: str


def settled(settings: Experiment, root: Path, *, extend: bool = False) -> Experiment:
    """Return the experiment as the run of the workspace that it is, or as a new one, and say which.

    A run may have more than its file: what was added to it stays. It keeps the engine that it was
    started with, on whatever machine it goes on; where `engine.kind` is "auto", a new run takes
    what this machine offers. The engine is part of the run's settings and so of its id: the same
    file on a laptop and on a GPU makes two runs.

    Args:
        settings: as the file says.
        root: the workspace.
        extend: add conditions and seeds that a run of this name lacks, instead of starting another.

    Raises:
        ConfigError: there is no run that they can be added to.
    """
    auto = settings.engine.kind == AUTO
    options = [settings.sampled_by(kind) for kind in KINDS] if auto else [settings]
    runs = dict[str, Joined]()
    for option in options:
        for each in joined(option, root):
            if extend or not each.lacks:
                runs.setdefault(option.engine.kind, each)
    if extend and not runs:
        raise _nothing_to_extend(options[0], root)
    kind = _kind(settings, runs) if auto else settings.engine.kind
    if kind not in runs:
        return settings.sampled_by(kind) if auto else settings
    known = runs[kind]
    if known.lacks:
        said = f"added to {known.run.experiment_id}: {known.lacks}"
        notes.print(said, soft_wrap=True, highlight=False, markup=False)
    return known.run


def joined(settings: Experiment, root: Path) -> Iterator[Joined]:
    """The experiment as each run of its name that it is part of; what is trained furthest first.

    Args:
        settings: with an engine that is settled.
        root: the workspace.
    """
    for stored in _stored(settings.name, root):
        if run := settings.part_of(stored):
            conditions = [name for name in run.conditions if name not in stored.conditions]
            seeds = [seed for seed in run.seeds if seed not in stored.seeds]
            yield Joined(run, Additions(conditions=tuple(conditions), seeds=tuple(seeds)).words)


def _kind(settings: Experiment, runs: Mapping[str, Joined]) -> str:
    """The engine that `auto` stands for: this machine's choice, unless the run has another."""
    chosen = chosen_here(settings)
    if runs and chosen.kind not in runs:
        kind = next(kind for kind in KINDS if kind in runs)
        chosen = Choice(kind, f"{runs[kind].run.experiment_id} was started with it")
    notes.print(str(chosen), soft_wrap=True, highlight=False, markup=False)
    return chosen.kind


def chosen_here(settings: Experiment) -> Choice:
    """Return the engine that `auto` stands for in a new run on this machine."""
    folder, python = at_hand(settings.model.name), settings.engine.python
    return choice(settings.model, folder, python, gpus=len(gpus.visible()))


def _stored(name: str, root: Path) -> Iterator[Experiment]:
    """The runs of a name, without those of earlier versions whose settings this one cannot read."""
    path = root / "sdcore.duckdb"
    if not path.exists():
        return
    with Store(path) as store:
        configs = store.query(_FURTHEST_FIRST, [name])["config"]
    for config in configs:
        try:
            yield Experiment.model_validate_json(config)
        except ValidationError:
            continue


def _nothing_to_extend(settings: Experiment, root: Path) -> ConfigError:
    for stored in _stored(settings.name, root):
        before, now = stored.model_dump(mode="json"), settings.model_dump(mode="json")
        for name in ("conditions", "contexts", "plugins", "trials"):
            now[name] = {key: value for key, value in now[name].items() if key in before[name]}
        now["seeds"] = [seed for seed in before["seeds"] if seed in now["seeds"]]
        changes = drift(before, now | {"added": before["added"]})
        more = f"; and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        return ConfigError(
            "not only conditions and seeds are added: this is another run",
            got="; ".join(changes[:_NAMED]) + more or "other values in a sweep of the run",
            where=stored.experiment_id,
            fix="`--new` starts it",
        )
    return ConfigError(
        "there is no run to extend",
        got=settings.name,
        where=str(root),
        fix="leave --extend out: `sdcore run` starts the run",
    )
