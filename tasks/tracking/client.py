"""MLflow, in the workspace's SQLite file or a shared store: the only module that imports mlflow.

DuckDB is the truth; what is logged here is copied from its tables, so both hold the same numbers.
"""

import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import polars as pl
from alembic.util import CommandError
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

import sdcore
from sdcore.config import Experiment
from sdcore.errors import SdcoreError
from sdcore.keys import address_key, redacted
from sdcore.reports import plots
from sdcore.solver import save_solver
from sdcore.store.schema import content_key
from sdcore.system.private import private_files
from tasks.run.condition_run import StoredPolicy
from tasks.tracking.mlflow_file import (
    DATABASE,
    artifacts_uri,
    database_uri,
    explained,
    follow_move,
    pragma,
)
from tasks.tracking.stores import SharedStore, shared_store, workspace_id

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read while mlflow is imported

with explained("mlflow"), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns about its own type hints
    from mlflow import MlflowClient
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        LoggedModelOutput,
        Metric,
        Param,
        RunTag,
    )
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model
    from mlflow.pyfunc import save_model
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it logs tracebacks
_UPDATE_METRICS = (
    "loss", "grad_norm", "learning_rate", "entropy", "mean_length", "accuracy", "rollouts",
    "tokens", "zero_variance_groups", "first_token_kl", "logprob_drift", "logprob_drift_max",
    "sampled_update_share", "base_drift",
    "padding_share", "seconds",
)  # fmt: skip
_HEADLINE = ("avg_at_k", "maj_at_k", "pass_at_k")
_SCORE_METRICS = (
    *(f"{metric}{end}" for metric in _HEADLINE for end in ("", "_low", "_high")),
    "mean_length", "format_rate", "sampled_tokens", "seconds",
)  # fmt: skip
# MLflow splits calls of more than 1000 points, and a kill in between could cut a step in two.
_STEPS_PER_CALL = 1000 // max(len(_UPDATE_METRICS), len(_SCORE_METRICS))
_LONGEST_PARAM = 6000
_PROMOTED = "sdcore.promoted"
_WORKSPACE = "sdcore.workspace"
_ANSWER_SECONDS = 20
_UPLOAD_SECONDS = 600  # another process of the workspace registers a model for at most so long
_REQUIREMENTS = ("mlflow", "peft", "safetensors", "tokenizers", "torch", "transformers")


class Tracking:
    """The MLflow side of a workspace: a parent run per experiment, a child per condition and seed.

    Runs are found by their tags, points are logged for missing steps only, and a policy is
    registered once: every call can be repeated. In a shared store, runs and versions have a tag
    with the workspace's id, since two workspaces may run the same experiment.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._own = root.absolute() / DATABASE
        self.shared = shared_store(root)
        self.place = self.shared or self._own
        self._opened = ExitStack()
        self._lock = FileLock(root / "mlflow.db.lock", timeout=_UPLOAD_SECONDS)
        self._runs: dict[tuple[str, str | None, str | None], str] = {}
        self._monitor: SystemMetricsMonitor | None = None
        place = self.shared.shown if self.shared else str(self._own)
        with explained(place), private_files(), self._lock:
            if self.shared is None:
                self._open_own(root)
            else:
                self._open_shared(root, self.shared)

    def _open_own(self, root: Path) -> None:
        self.uri = self._opened.enter_context(database_uri(root))
        self._artifacts: str | None = artifacts_uri(root)
        self._tags: dict[str, str] = {}
        # Far fewer waits for the disk, and the MLflow server can read while a run writes.
        pragma(self._own, "journal_mode = WAL")
        with store_errors(self._own):
            self._client = MlflowClient(self.uri, registry_uri=self.uri)
            self._client.search_experiments(max_results=1)  # creates the tables
            follow_move(root)

    def _open_shared(self, root: Path, store: SharedStore) -> None:
        self.uri, self._artifacts = store.uri, store.artifacts
        with store_errors(self.place):
            if not store.is_server:
                _require_login(store)  # MLflow itself would try for minutes
            self._client = MlflowClient(self.uri, registry_uri=self.uri)
            self._client.search_experiments(max_results=1)
        self._tags = {_WORKSPACE: workspace_id(root, store)}

    def start(self, experiment: Experiment, code_version: str, libraries: Mapping[str, str]) -> str:
        """Open the experiment's parent run, or open it again: parameters, exact config, versions.

        Returns:
            MLflow's id of the parent run.
        """
        run_id = self._run(experiment)
        tags = {
            "mlflow.note.content": experiment.description,
            "sdcore.code_version": code_version,
            **{f"library.{name}": number for name, number in libraries.items()},
        }
        self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
        self.log_text(experiment, experiment.model_dump_json(indent=2), "experiment.json")
        for each in self._find(experiment).values():
            self._client.update_run(each, status="RUNNING")
        self._watch(run_id)
        return run_id

    def log_problems(self, experiment: Experiment, problems: pl.DataFrame) -> None:
        """Log the problems of each split as a dataset that the parent run used."""
        inputs = [
            DatasetInput(
                _dataset(experiment, str(split), rows),
                [InputTag("mlflow.data.context", str(split))],
            )
            for (split,), rows in problems.sort("position").group_by("split", maintain_order=True)
        ]
        self._client.log_inputs(self._run(experiment), inputs)

    def log_checkpoint(
        self,
        experiment: Experiment,
        condition: str,
        seed: int,
        updates: pl.DataFrame,
        scores: pl.DataFrame,
    ) -> None:
        """Log rows of the tables `updates` and `scores` of one condition and seed.

        Metrics are named `train/loss`, `validation/avg_at_k`, `test/avg_at_k` and so on; `train`
        has the optimizer step as its step, the others the round. Steps logged before are skipped.
        """
        run_id = self._run(experiment, condition, seed)
        steps = self._missing(run_id, "train", updates, "step", _UPDATE_METRICS)
        for (split,), rows in scores.group_by("split", maintain_order=True):
            steps += self._missing(run_id, str(split), rows, "round", _SCORE_METRICS)
        for start in range(0, len(steps), _STEPS_PER_CALL):
            points = list(chain.from_iterable(steps[start : start + _STEPS_PER_CALL]))
            self._client.log_batch(run_id, metrics=points)

    def log_measures(
        self, experiment: Experiment, condition: str, seed: int, measures: pl.DataFrame
    ) -> None:
        """Log rows of `localisation.measures` as metrics `<context>/<measure>`, with their bounds.

        What is not a number is left out, and so is what is logged already.
        """
        points = {
            f"{row['context']}/{row['measure']}{end}": row[column]
            for row in measures.iter_rows(named=True)
            for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        self._log_new(self._run(experiment, condition, seed), points)

    def log_summary(self, experiment: Experiment, summary: pl.DataFrame) -> None:
        """Log rows of `comparison.summary` as metrics `<metric>/<condition>` of the parent run.

        They are those of the checkpoints chosen on validation: runs of changed settings compare.
        """
        points = {
            f"{metric}/{row['condition']}": row[metric]
            for row in summary.filter(pl.col("checkpoint") != "optimistic").iter_rows(named=True)
            for metric in (*_HEADLINE, "gain")
            if row[metric] is not None
        }
        self._log_new(self._run(experiment), points)

    def log_trials(self, experiment: Experiment, trials: pl.DataFrame) -> None:
        """Log the table `trials` of the parent run, and tag the runs of each trial.

        `sdcore.family` is the condition of the file; `sdcore.chosen` says whether the trial stands
        for it.
        """
        self.log_table(experiment, trials, "trials.csv")
        for row in trials.iter_rows(named=True):
            tags = {"sdcore.family": row["condition"], "sdcore.chosen": str(row["chosen"]).lower()}
            for seed in experiment.seeds:
                run_id = self._run(experiment, row["trial"], seed)
                self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])

    def log_figure(self, experiment: Experiment, figure: Figure, file: str) -> None:
        """Log a figure of the parent run as a PNG file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, file)
            path.write_bytes(plots.png(figure))
            self._client.log_artifact(self._run(experiment), str(path))

    def log_table(self, experiment: Experiment, table: pl.DataFrame, file: str) -> None:
        """Log a table of the parent run as CSV, which MLflow shows as a table."""
        self.log_text(experiment, table.write_csv(), file)

    def log_text(self, experiment: Experiment, text: str, file: str) -> None:
        """Log text of the parent run (plain, JSON, HTML) as a file; an earlier one is replaced."""
        self._client.log_text(self._run(experiment), text, file)

    def register(
        self,
        experiment: Experiment,
        policy: StoredPolicy,
        folder: Path,
        aliases: Sequence[str],
        day: date,
        warmed_up: Path | None = None,
    ) -> str:
        """Register a policy as a version of the model named like the experiment, with aliases.

        `mlflow.pyfunc.load_model("models:/<experiment>@<alias>").predict([question, ...])` answers
        questions. The version holds the trained weights and the base model's name, not the base;
        only a base that was warmed up goes with them.

        Args:
            experiment: whose policy it is.
            policy: the policy.
            folder: its checkpoint.
            aliases: names that from now on point to this version.
            day: the date in its prompts, if the chat template reads the clock.
            warmed_up: model folder of the base where a warm-up made it.

        Returns:
            The version; a policy that was registered before keeps its own.
        """
        with self._lock:
            number = self._version(experiment.name, policy.policy_id)
            if number is None:
                number = self._new_version(experiment, policy, folder, day, warmed_up)
            for alias in aliases:
                allowed = re.sub(r"[^\w-]", "-", alias)
                self._client.set_registered_model_alias(experiment.name, allowed, number)
        return number

    def mark_promoted(self, experiment: Experiment) -> None:
        """Remember that a person chose the champion among the policies of this run."""
        self._client.set_registered_model_tag(experiment.name, _PROMOTED, experiment.experiment_id)

    def is_promoted(self, experiment: Experiment) -> bool:
        """Return whether a person chose the champion, and did so among the policies of this run."""
        found = self._client.search_registered_models(f"name = '{experiment.name}'")
        return any(model.tags.get(_PROMOTED) == experiment.experiment_id for model in found)

    def champion(self, experiment: Experiment) -> str | None:
        """Id of the policy of this run that is called champion; None where it is of another run."""
        name = experiment.name
        found = self._client.search_registered_models(f"name = '{name}'")
        if not any("champion" in model.aliases for model in found):
            return None
        tags = self._client.get_model_version_by_alias(name, "champion").tags
        return str(tags["policy_id"]) if self._is_own(tags) else None

    def page(self, experiment: Experiment) -> str:
        """Return the address of the parent run in MLflow's UI, below that of the server."""
        return f"experiments/{self._folder(experiment)}/runs/{self._run(experiment)}"

    def forget(self, experiment: Experiment, condition: str, seed: int) -> None:
        """Delete the run of one condition and seed, so that it is logged again from the start.

        MLflow keeps deleted runs until `mlflow gc`, and can restore them.
        """
        key = (experiment.experiment_id, condition, str(seed))
        run_id = self._find(experiment).get(key)
        self._runs.pop(key, None)
        if run_id is not None:
            self._client.delete_run(run_id)

    def end(self, experiment: Experiment, condition: str, seed: int) -> None:
        """Close the run of one condition and seed, which has nothing more to log."""
        self._client.set_terminated(self._run(experiment, condition, seed), "FINISHED")

    def finish(
        self, experiment: Experiment, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    ) -> None:
        """Close the parent run, and those of its children that are still open."""
        self._stop_watching()
        for run_id in self._find(experiment).values():
            if self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, status)
        if self.shared is None:
            pragma(self._own, "wal_checkpoint(TRUNCATE)")  # all of it in the one file

    def close(self) -> None:
        """Stop logging the machine's load, and let go of the tables."""
        self._stop_watching()
        self._opened.close()

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
            self._monitor = None

    def _watch(self, run_id: str) -> None:
        """Log the machine's load to a run from now on, twice a minute."""
        if self._monitor is None:
            self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
                run_id,
                sampling_interval=10,
                samples_before_logging=3,
                resume_logging=True,
                tracking_uri=self.uri,
            )
            self._monitor.start()  # type: ignore[no-untyped-call]

    def _run(
        self, experiment: Experiment, condition: str | None = None, seed: int | None = None
    ) -> str:
        key = (experiment.experiment_id, condition, None if seed is None else str(seed))
        if key in self._runs and not self._is_active(self._runs[key]):
            del self._runs[key]
        if key not in self._runs:
            with self._lock:
                self._runs |= self._find(experiment)
                if key not in self._runs:
                    self._runs[key] = self._create(experiment, condition, seed)
        return self._runs[key]

    def _is_active(self, run_id: str) -> bool:
        """Return whether the run was not deleted since, such as by `rescore` in another process."""
        with suppress(MlflowException):  # `mlflow gc` has removed it for good
            return str(self._client.get_run(run_id).info.lifecycle_stage) == "active"
        return False

    def _find(self, experiment: Experiment) -> dict[tuple[str, str | None, str | None], str]:
        name = experiment.experiment_id
        wanted = {"sdcore.experiment_id": name} | self._tags
        clauses = (f"tags.`{tag}` = '{value}'" for tag, value in wanted.items())
        found = self._client.search_runs([self._folder(experiment)], " AND ".join(clauses))
        return {
            (name, run.data.tags.get("sdcore.condition"), run.data.tags.get("sdcore.seed")):
            run.info.run_id
            for run in found
        }  # fmt: skip

    def _create(self, experiment: Experiment, condition: str | None, seed: int | None) -> str:
        tags = {"sdcore.experiment_id": experiment.experiment_id, "mlflow.source.name": "sdcore"}
        tags |= self._tags
        if condition is None:
            name, settings = experiment.experiment_id, experiment.model_dump(mode="json")
            del settings["description"]  # may change from one start to the next
        else:
            name = f"{condition}/seed-{seed}"
            chosen = experiment.conditions.get(condition)  # the base has none
            settings = {"condition": condition, "seed": seed}
            settings |= _compared(chosen.model_dump(mode="json")) if chosen else {}
            tags |= {"sdcore.condition": condition, "sdcore.seed": str(seed)}
            tags |= {"mlflow.parentRunId": self._run(experiment)}
        run = self._client.create_run(self._folder(experiment), tags=tags, run_name=name)
        self._client.log_batch(run.info.run_id, params=list(_params(settings)))
        return str(run.info.run_id)

    def _folder(self, experiment: Experiment) -> str:
        """Id of what MLflow calls an experiment: all runs of experiment files of one name."""
        known = self._client.get_experiment_by_name(experiment.name)
        if known is None:
            # Its pages show training runs.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            with _unless_made(self.shared):
                return str(self._client.create_experiment(experiment.name, self._artifacts, tags))
            known = self._client.get_experiment_by_name(experiment.name)
        return str(known.experiment_id)

    def _log_new(self, run_id: str, points: Mapping[str, float]) -> None:
        logged, now = self._client.get_run(run_id).data.metrics, int(time.time() * 1000)
        new = [
            Metric(name, value, now, 0)
            for name, value in points.items()
            if math.isfinite(value) and logged.get(name) != value
        ]
        self._client.log_batch(run_id, metrics=new)

    def _missing(
        self, run_id: str, group: str, rows: pl.DataFrame, step: str, metrics: Sequence[str]
    ) -> list[list[Metric]]:
        """The points of each step that is not logged yet."""
        history = self._client.get_metric_history(run_id, f"{group}/{metrics[0]}")
        missing = rows.filter(~pl.col(step).is_in([point.step for point in history])).sort(step)
        now = int(time.time() * 1000)
        return [
            [
                Metric(f"{group}/{metric}", row[metric], now, row[step])
                for metric in metrics
                if row[metric] is not None
            ]
            for row in missing.iter_rows(named=True)
        ]

    def _version(self, name: str, policy_id: str) -> str | None:
        own = (
            str(each.version)
            for each in self._client.search_model_versions(f"name = '{name}'")
            if each.tags.get("policy_id") == policy_id and self._is_own(each.tags)
        )
        return next(own, None)

    def _is_own(self, tags: Mapping[str, str]) -> bool:
        """Return whether a version with these tags comes from this workspace."""
        return self._tags.items() <= tags.items()

    def _new_version(
        self,
        experiment: Experiment,
        policy: StoredPolicy,
        folder: Path,
        day: date,
        warmed_up: Path | None,
    ) -> str:
        run_id = self._run(experiment, policy.condition, policy.seed)
        own = {
            name: str(getattr(policy, name)) for name in ("policy_id", "condition", "seed", "round")
        }
        tags = own | self._tags
        model = self._client.create_logged_model(self._folder(experiment), "policy", run_id, tags)
        with tempfile.TemporaryDirectory() as scratch:
            save_solver(Path(scratch, "solver"), experiment, folder, day, warmed_up)
            save_model(
                path=f"{scratch}/model",
                mlflow_model=Model(model_id=model.model_id, run_id=run_id),
                loader_module="sdcore.solver",
                data_path=f"{scratch}/solver",
                pip_requirements=_requirements(),
                metadata=asdict(policy),
            )
            self._client.log_model_artifacts(model.model_id, f"{scratch}/model")
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, policy.step)])
        if not self._client.search_registered_models(f"name = '{experiment.name}'"):
            with _unless_made(self.shared):
                self._client.create_registered_model(experiment.name)
        created = self._client.create_model_version(
            experiment.name, model.artifact_location, run_id, tags, model_id=model.model_id
        )
        return str(created.version)


@contextmanager
def store_errors(place: SharedStore | Path) -> Iterator[None]:
    """Give errors of MLflow's tables as sdcore's.

    Those of a shared store come without the password that its address may hold.

    Args:
        place: the shared store, or the workspace's own file.

    Raises:
        SdcoreError: the store does not answer, or refuses what is asked.
    """
    try:
        yield
    except SdcoreError:
        raise
    except Exception as error:
        if isinstance(place, SharedStore):
            raise SdcoreError(
                "the shared MLflow cannot be used",
                got=redacted(f"{type(error).__name__}: {error}", address_key(place.uri)),
                where=place.shown,
                fix="see that it answers and that its login is right; then the same command goes "
                "on, and logs what is missing",
            ) from None
        known = (MlflowException, SQLAlchemyError, sqlite3.Error, Timeout, CommandError)
        if not isinstance(error, known):
            raise
        raise SdcoreError(
            "MLflow's tables cannot be used",
            got=str(error).partition("\n")[0],
            where=str(place),
            fix="end the process that has locked them, or free disk space; `sdcore doctor` says "
            "whether they are damaged. Move them away if another version of MLflow made them. Then "
            "the same command goes on, and logs what is missing",
        ) from error


@contextmanager
def _unless_made(store: SharedStore | None) -> Iterator[None]:
    """Let another workspace make the same thing in a shared store first."""
    try:
        yield
    except MlflowException as error:
        if store is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _require_login(store: SharedStore) -> None:
    """Connect to a database, and leave again."""
    engine = create_engine(store.uri, connect_args={"connect_timeout": _ANSWER_SECONDS})
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _dataset(experiment: Experiment, split: str, rows: pl.DataFrame) -> Dataset:
    """MLflow's record of a split: its digest, where it is, its columns and its size."""
    columns = ("question", "solution", "reference")
    schema = [{"type": "string", "name": name, "required": name != "solution"} for name in columns]
    where = f"problems, experiment_id = {experiment.experiment_id}, split = {split}"
    return Dataset(
        name=f"{experiment.name}-{split}",
        digest=content_key(rows["problem_id"].to_list())[:8],
        source_type="duckdb",
        source=json.dumps({"file": "sdcore.duckdb", "table": where}),
        schema=json.dumps({"mlflow_colspec": schema}),
        profile=json.dumps({"num_rows": len(rows)}),
    )


def _requirements() -> list[str]:
    """Given to MLflow, which would otherwise load and run the model to find out."""
    installed = (f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS)
    return [f"sdcore=={sdcore.__version__}", *installed]


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """A condition's settings: MLflow's page of a comparison draws the first names that differ."""
    first = ("objective", "context", "group_size", "learning_rate")
    head = {name: settings.pop(name) for name in first if name in settings}
    return head | {"settings": settings}


def _params(settings: Mapping[str, Any], prefix: str = "") -> Iterator[Param]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _params(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield Param(prefix + name, text[:_LONGEST_PARAM])
