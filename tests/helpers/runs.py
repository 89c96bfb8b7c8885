"""The command run for real, perhaps killed on the way, and whether two runs ended alike."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

from sdcore.models.weight_files import folder_digest
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tasks.run.session import DATABASE

SDCORE = Path(sys.executable).with_name("sdcore")
TIMES = {"seconds", "created_at", "code_version"}
PATIENCE = 1800  # seconds for one leg of a run; a busy machine needs a few minutes


def sdcore(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([SDCORE, *map(str, arguments)], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SDCORE, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait until something has happened; a process that ends before fails the test."""
    patience = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < patience
        still_runs(process, 0.1)


def still_runs(process: subprocess.Popen[str], seconds: float) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def count(workspace: Path, table: str) -> int:
    return Store(workspace / DATABASE).query(f"SELECT count(*) AS n FROM {table}")["n"][0]


def tables(workspace: Path) -> dict[str, pl.DataFrame]:
    """Every table, sorted, without the columns that tell the time."""
    store = Store(workspace / DATABASE)
    return {
        name: store.rows(name).drop(TIMES & set(table.dtypes)).sort(table.key)
        for name, table in TABLES.items()
    }


def metrics(workspace: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Steps and values of every MLflow metric by run, times and the machine's load aside."""
    return metrics_at(f"sqlite:///{workspace}/mlflow.db")


def metrics_at(uri: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """`metrics` of the MLflow at an address."""
    client = MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {
        run.info.run_name: {
            name: sorted(
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
            if not name.endswith("seconds") and not name.startswith("system/")
        }
        for run in runs
    }


def weights(workspace: Path) -> dict[str, str]:
    """Digest of the weights in every checkpoint that is there."""
    paths = Store(workspace / DATABASE).rows("policies")["path"]
    there = [path for path in paths.drop_nulls() if (workspace / path).is_dir()]
    return {path: folder_digest(workspace / path) for path in there}


def assert_same(found: Path, expected: Path, uri: str | None = None) -> None:
    """Both workspaces hold the same rows, times aside, the same weights and the same metrics.

    `uri` is the address of the first one's MLflow, if its runs are not in the workspace.
    """
    rows = tables(found)
    assert [name for name, frame in tables(expected).items() if not frame.equals(rows[name])] == []
    assert weights(found) == weights(expected) != {}
    digests = dict(rows["policies"].select("path", "sha256").iter_rows())
    assert weights(found).items() <= digests.items()
    assert (metrics_at(uri) if uri else metrics(found)) == metrics(expected)
