"""The Python API behind `sdcore.run` and `sdcore.open`: start experiments, read their tables."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from flows.settling import settled
from sdcore.config import Experiment, load_experiment
from sdcore.errors import SdcoreError, StoreError
from sdcore.store.database import Store
from sdcore.store.reading import read
from sdcore.system.supervise import die_with_parent
from tasks.tracking.mlflow_file import follow_if_moved

if TYPE_CHECKING:
    from sdcore.solver import Solver

DATABASE = "sdcore.duckdb"


def run(
    experiment: Experiment | str | Path, workspace: str | Path = "runs", *, extend: bool = False
) -> "Run":
    """Run an experiment to its end, as `sdcore run` does, and return the finished run.

    The work is done in a process of its own, so that this works in a script without a
    ``__main__`` guard, in a notebook and inside a running event loop. That process keeps to the
    workspace: its servers listen on loopback and end with it, and nothing is sent anywhere.
    Progress goes to standard error. Call it again and it does only what is missing. Ctrl-C stops it
    as it stops the command; at the second one it ends at once.

    Args:
        experiment: settings, a file, or the name of a shipped experiment.
        workspace: folder of tables, checkpoints and reports.
        extend: add conditions and seeds to the run of this name that lacks them, instead of
            starting another.

    Raises:
        ConfigError: the experiment does not validate, or there is no run to extend.
        SdcoreError: the run failed; its message was printed.
    """
    root = Path(workspace).resolve()
    given = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    settings = settled(given, root, extend=extend)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "experiment.json")
        file.write_text(settings.model_dump_json(), "utf-8")
        command = [sys.executable, "-m", "flows.api", str(file), str(root)]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        code = _finished(command, os.environ | {"PYTHONPATH": path})
    if code:
        raise SdcoreError(
            "the run failed",
            got=f"exit code {code}",
            where=f"{settings.experiment_id} in {root}",
            fix="its message is on standard error; the same call goes on from what is stored",
        )
    return Run(root, settings.experiment_id)


def open(workspace: str | Path = "runs") -> "Workspace":
    """Open a workspace to read what its runs have stored.

    Raises:
        StoreError: there are no tables.
    """
    root = Path(workspace).resolve()
    if not (root / DATABASE).exists():
        raise StoreError(
            "no tables here",
            got=str(root / DATABASE),
            fix="`sdcore.run` or `sdcore run` makes them",
        )
    follow_if_moved(root)
    return Workspace(root)


@dataclass(frozen=True)
class Workspace:
    """A folder of runs."""

    root: Path

    def runs(self) -> list["Run"]:
        """The runs, the newest first."""
        rows = self.query("SELECT experiment_id FROM experiments ORDER BY created_at DESC")
        return [Run(self.root, experiment_id) for experiment_id in rows["experiment_id"]]

    def run(self, name: str) -> "Run":
        """The run with an experiment id, or the newest of a name.

        Raises:
            StoreError: there is none.
        """
        rows = self.query(
            "SELECT experiment_id FROM experiments WHERE experiment_id = $name OR name = $name "
            "ORDER BY created_at DESC",
            {"name": name},
        )
        if not len(rows):
            known = ", ".join(run.experiment_id for run in self.runs())
            raise StoreError("no such run", got=name, expected=known, where=str(self.root))
        return Run(self.root, rows["experiment_id"][0])

    def query(self, sql: str, parameters: dict[str, object] | None = None) -> pl.DataFrame:
        """Rows of one SELECT over the tables and views, on a copy that holds up no run.

        Raises:
            StoreError: the statement fails, or does anything but read.
        """
        with Store(self.root / DATABASE) as store:
            return read(store, sql, parameters or {})


@dataclass(frozen=True)
class Run:
    """One run of an experiment: its settings, its tables as Polars frames, its champion."""

    root: Path
    experiment_id: str

    @cached_property
    def experiment(self) -> Experiment:
        """The settings that it was started with."""
        return Experiment.model_validate_json(self._rows("experiments")["config"][0])

    @cached_property
    def started(self) -> date:
        """The UTC day of the first start, which prompts render as today."""
        day: datetime = self._rows("experiments")["created_at"][0]
        return day.date()

    def rollouts(self) -> pl.DataFrame:
        """Rows of the table `rollouts`."""
        return self._rows("rollouts")

    def critiques(self) -> pl.DataFrame:
        """Rows of the table `critiques`."""
        return self._rows("critiques")

    def token_signals(self) -> pl.DataFrame:
        """Rows of the table `token_signals`."""
        return self._rows("token_signals")

    def teacher_samples(self) -> pl.DataFrame:
        """Rows of the table `teacher_samples`."""
        return self._rows("teacher_samples")

    def branches(self) -> pl.DataFrame:
        """Rows of the table `branches`."""
        return self._rows("branches")

    def updates(self) -> pl.DataFrame:
        """Rows of the table `updates`."""
        return self._rows("updates")

    def scores(self) -> pl.DataFrame:
        """Rows of the table `scores`."""
        return self._rows("scores")

    def comparison(self) -> pl.DataFrame:
        """Rows of the table `comparisons`: paired differences with their intervals."""
        return self._rows("comparisons")

    def champion(self) -> "Champion":
        """The policy that MLflow's registry calls champion: the best on validation, or promoted.

        Raises:
            StoreError: no run of this experiment has a champion yet.
        """
        from tasks.tracking.client import Tracking, store_errors  # noqa: PLC0415 - MLflow and torch

        with closing(Tracking(self.root)) as tracking, store_errors(tracking.place):
            policy_id = tracking.champion(self.experiment)
        policies = self._rows("policies").filter(policy_id=policy_id) if policy_id else None
        if policies is None or not len(policies):
            raise StoreError(
                "the run has no champion",
                got=policy_id,
                where=self.experiment_id,
                fix="`sdcore resume` finishes the run; `sdcore promote` chooses another one",
            )
        return Champion(self, str(policies["condition"][0]), str(policies["path"][0]))

    def _rows(self, table: str) -> pl.DataFrame:
        with Store(self.root / DATABASE) as store:
            return store.rows(table, experiment_id=self.experiment_id)


@dataclass(frozen=True)
class Champion:
    """The champion of a run, ready to answer questions."""

    run: Run
    condition: str
    path: str

    def generate(self, questions: Sequence[str]) -> list[str]:
        """One sampled trace per question; the same call gives the same traces."""
        return self._solver.predict(questions)

    @cached_property
    def _solver(self) -> "Solver":
        from sdcore.solver import Solver, save_solver  # noqa: PLC0415 - loads torch

        run = self.run
        base = run.root / "checkpoints" / run.experiment_id / "base"
        warmed_up = base / f"seed-{run.experiment.seeds[0]}" / "round-0000"
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "solver")
            given = warmed_up if run.experiment.warmup else None
            save_solver(target, run.experiment, run.root / self.path, run.started, given)
            return Solver(target)


def _finished(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, and return its exit code.

    A terminal's Ctrl-C reaches the command too, which is then waited for until it has stored what
    it did. It ends with this process.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile; the command has ended.
    """
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - a prctl, which takes no lock
    ) as process:
        # With a time limit Python looks again and again; a wait without one does not notice
        # Ctrl-C, since polars has system calls restarted.
        try:
            return process.wait(math.inf)
        except KeyboardInterrupt:
            try:
                process.wait(math.inf)
            except KeyboardInterrupt:
                process.terminate()  # where no terminal has sent it the second one
                process.wait(math.inf)
            raise


def _main(file: str, workspace: str) -> None:
    """The process that `run` starts."""
    from flows.commands.main import run_experiment  # noqa: PLC0415 - the command's own imports

    settings = Experiment.model_validate(json.loads(Path(file).read_text("utf-8")))
    run_experiment(settings, Path(workspace))


if __name__ == "__main__":
    _main(*sys.argv[1:])
