"""Stage 1: the experiment's row, its problems and its base policy."""

import importlib.metadata
import json
import subprocess
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

import sdcore
from sdcore.config import Experiment
from sdcore.errors import ConfigError, ModelError, StoreError
from sdcore.models import policies, weight_files
from sdcore.models.folders import settings_digest
from sdcore.models.lengths import Room
from sdcore.models.prompts import require_shown
from sdcore.problems.screening import Problem
from sdcore.problems.splits import Loaded, load_problems
from sdcore.rollouts import lacking_sources
from sdcore.schedule import lineages
from sdcore.store.schema import TABLES
from tasks.growth import grown, store_grown, stored_settings
from tasks.run.condition_run import RAW, ConditionRun, StoredPolicy
from tasks.run.progress import note

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "polars",
    "duckdb",
    "prefect",
    "mlflow",
    "math-verify",
)


@task(cache_policy=NO_CACHE, task_run_name="prepare {base.experiment.name}")
def prepare(base: ConditionRun) -> int:
    """Store the experiment, its problems and the named model's policy, unless they are there.

    Returns:
        How many problems there are.

    Raises:
        ConfigError: a condition shows the teacher solutions, and the source has none; or the code
            of a plugin has changed.
        ConfigError: a condition is added whose context has no room beside a problem of the run.
        ConfigError: a prompt does not show the question or the context.
        DataError: the source does not have the problems that are asked for.
        ModelError: the base model has changed since the run was started.
        ModelError: the model cannot be adapted as `training.lora` says.
        StoreError: the run's checkpoints are there without its rows.
    """
    base.experiment.require_same_plugins()
    experiment_id = pl.lit(base.experiment.experiment_id)
    if len(base.store.rows("experiments", experiment_id=base.experiment.experiment_id)):
        require_same_model(base)
        _add(base)
    else:
        _require_no_checkpoints(base)
        started = datetime.now(UTC).replace(tzinfo=None)
        room = _room(base, started.date())
        require_shown(room.tokenizer, room.prompts)
        if lora := base.experiment.training.lora:
            folder = base.session.models.folder(base.experiment.model.name)
            policies.check_targets(folder, lora)
        loaded = load_problems(base.experiment.problems, partial(_too_long, room))
        _require_solutions(base.experiment, loaded.problems)
        base.store.append_missing(
            experiments=TABLES["experiments"].frame(
                [experiment_row(base) | {"created_at": started}]
            ),
            policies=StoredPolicy.to_frame([base_policy(base)]),
            problems=loaded.problems.with_columns(experiment_id=experiment_id),
            rejected_problems=loaded.rejected_problems.with_columns(experiment_id=experiment_id),
        )
        if len(loaded.rejected_problems):
            note(f"left out of the problems (table rejected_problems): {_summary(loaded)}")
    counted = base.store.query(
        "SELECT count(*) FROM problems WHERE experiment_id = ?", [base.experiment.experiment_id]
    )
    return int(counted.item())


def _add(base: ConditionRun) -> None:
    """Store the conditions and seeds that the run has not had, once it is known that they fit.

    Raises:
        ConfigError: a condition shows the teacher what the run's problems do not have, or what has
            no room beside them.
    """
    joined, stored = grown(base), stored_settings(base)
    if set(lineages(joined.experiment)) == set(lineages(stored)):
        return
    if set(joined.experiment.distilled) > set(stored.distilled):
        _require_fit(joined)
    store_grown(joined)


def _require_fit(joined: ConditionRun) -> None:
    """See that the contexts of a run that has grown fit the problems that it was started with."""
    problems = joined.candidates("train")
    _require_solutions(joined.experiment, problems)
    room = _room(joined, joined.prompt_day)
    for row in problems.iter_rows(named=True):
        if excess := room.excess(row["question"], row["solution"], row["reference"], taught=True):
            raise ConfigError(
                "what is added has no room beside a problem that the run was started with",
                got=excess,
                where=row["source"],
                fix="`--new` starts a run whose problems leave room for it",
            )


def _require_no_checkpoints(base: ConditionRun) -> None:
    """Refuse to start a run whose checkpoints are there, and would be deleted as unknown ones.

    Raises:
        StoreError: the tables were lost, or are another workspace's.
    """
    folder = base.folder.parents[1]  # of all conditions and seeds
    if found := list(folder.glob("*/seed-*/round-*")):
        raise StoreError(
            "the tables do not have this run, but its checkpoints are there",
            got=f"{len(found)} checkpoints",
            where=str(folder),
            fix=f"restore {base.store.path.name} (`sdcore doctor` says how), or move that folder "
            "away to start again",
        )


def require_same_model(base: ConditionRun) -> None:
    """Refuse to go on with another model than the one that the run started with.

    Raises:
        ModelError: the named model's weights, config or tokenizer have changed.
    """
    (named,) = StoredPolicy.from_frame(base.store.rows("policies", kind="base", **base.columns))
    now = base_policy(base)
    folder = str(base.session.models.folder(base.experiment.model.name))
    same = "or start another run with the new ones: give the experiment another name"
    if now.sha256 != named.sha256:
        raise ModelError(
            "the base model's weights have changed since the run was started",
            got=now.sha256,
            expected=named.sha256,
            where=folder,
            fix=f"restore the weights that the run started with, {same}",
        )
    if now.policy_id != named.policy_id:
        raise ModelError(
            "the base model's config or tokenizer has changed since the run was started",
            got="files that differ from those at the start",
            where=folder,
            fix=f"restore config.json, generation_config.json, the tokenizer's files and the chat "
            f"template as they were, {same}",
        )


def _room(base: ConditionRun, day: date) -> Room:
    """Room for the experiment's prompts and responses in its model."""
    experiment, models = base.experiment, base.session.models
    name, fallback = experiment.model.name, getattr(experiment.judge, "fallback", None)
    shown = dict.fromkeys([*experiment.distilled, *([fallback] if fallback else [])])
    return Room(
        tokenizer=models.tokenizer(name, day),
        prompts=experiment.prompts,
        contexts=[experiment.known_contexts[each] for each in shown],
        new_tokens=experiment.sampling.max_new_tokens,
        student=base.sampled_length,
        teacher=base.context_length,
    )


def _too_long(room: Room, problem: Problem, split: str) -> str | None:
    asked = problem.question, problem.solution, problem.reference
    return room.excess(*asked, taught=split == "train")


def _summary(loaded: Loaded) -> str:
    counts = loaded.rejected_problems["kind"].value_counts().sort("kind").iter_rows()
    return ", ".join(f"{count} {kind}" for kind, count in counts)


def _require_solutions(experiment: Experiment, problems: pl.DataFrame) -> None:
    train = problems.filter(split="train")
    missing = train.filter(pl.col("solution").is_null())
    for name, condition in experiment.conditions.items():
        lacking = lacking_sources(train["solution"], condition.group_size)
        for context in experiment.shown_in(condition):
            if context.needs & lacking:
                raise ConfigError(
                    f"condition {name!r} shows the teacher {context.name}, which is made of "
                    "reference solutions, and problems lack one",
                    got=f"{len(missing)} train problems without, first {missing['source'][0]}",
                    where=f"conditions.{name}.context",
                    fix="name the column in problems.solution, use another context, or leave the "
                    "condition out",
                )


def experiment_row(base: ConditionRun) -> dict[str, object]:
    """The row of `experiments` that the run would get today."""
    return {
        "experiment_id": base.experiment.experiment_id,
        "name": base.experiment.name,
        "fingerprint": base.experiment.fingerprint,
        "config": base.experiment.model_dump_json(),
        "code_version": f"{sdcore.__version__}+{_commit()}",
        "libraries": json.dumps({name: importlib.metadata.version(name) for name in LIBRARIES}),
        "created_at": datetime.now(UTC).replace(tzinfo=None),
    }


def base_policy(base: ConditionRun) -> StoredPolicy:
    """The named model as the policy that the run would store today."""
    warmup = base.experiment.warmup
    name = base.experiment.model.name
    folder = base.session.models.folder(name)
    digest = weight_files.folder_digest(folder)
    round_ = RAW if warmup else 0
    return StoredPolicy(
        **base.columns,  # type: ignore[arg-type]
        policy_id=base.key(round_, digest, settings_digest(folder)),
        parent_id=None,
        step=-warmup.steps if warmup else 0,
        round=round_,
        kind="base",
        path=name,
        sha256=digest,
    )


def _commit() -> str:
    """Git commit of this checkout, or "release" where the package is installed elsewhere."""
    checkout = Path(__file__).parents[1]
    run = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    top, _, commit = run.stdout.strip().partition("\n")
    return commit if commit and Path(top) == checkout else "release"
