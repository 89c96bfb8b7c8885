"""Stage 1: the experiment's row, its problems and its base policy."""

import importlib.metadata
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

import sdcore
from sdcore import policies
from sdcore.problems import load_problems
from sdcore.schema import TABLES
from tasks import models
from tasks.workspace import RAW, Lineage, Reference

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
def prepare(base: Lineage) -> Reference:
    """Store the experiment, its problems and the named model's policy, unless they are there."""
    if not len(base.store.rows("experiments", experiment_id=base.experiment.experiment_id)):
        base.store.append_missing(
            experiments=TABLES["experiments"].frame([_experiment_row(base)]),
            policies=TABLES["policies"].frame([_base_row(base)]),
            problems=load_problems(base.experiment.problems).with_columns(
                experiment_id=pl.lit(base.experiment.experiment_id)
            ),
        )
    count = len(base.store.rows("problems", experiment_id=base.experiment.experiment_id))
    return Reference("problems", base.experiment.experiment_id, count)


def _experiment_row(base: Lineage) -> dict[str, object]:
    return {
        "experiment_id": base.experiment.experiment_id,
        "name": base.experiment.name,
        "fingerprint": base.experiment.fingerprint,
        "config": base.experiment.model_dump_json(),
        "code_version": f"{sdcore.__version__}+{_commit()}",
        "libraries": json.dumps({name: importlib.metadata.version(name) for name in LIBRARIES}),
        "created_at": datetime.now(UTC).replace(tzinfo=None),
    }


def _base_row(base: Lineage) -> dict[str, object]:
    warmup = base.experiment.warmup
    digest = policies.weights_digest(models.model_folder(base.experiment.model.name))
    round_ = RAW if warmup else 0
    return base.columns | {
        "policy_id": base.key(round_, digest),
        "parent_id": None,
        "step": -warmup.steps if warmup else 0,
        "round": round_,
        "kind": "base",
        "path": base.experiment.model.name,
        "sha256": digest,
    }


def _commit() -> str:
    """Git commit of the code, or 'release' outside a checkout."""
    run = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "release"
