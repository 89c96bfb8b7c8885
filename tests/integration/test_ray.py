"""Runs on the nodes of a Ray cluster, which share nothing but a root for parts and checkpoints."""

import json

import polars as pl
import pytest

from sdcore.store.database import Store
from tasks.run.session import DATABASE
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import assert_same, sdcore, start, wait_for
from tests.helpers.small import SMALL

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'sdcore[ray]'")
pytestmark = pytest.mark.night
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
LONGER = [*SMALL, "training.rounds=8"]


@pytest.fixture
def cluster(prefect, monkeypatch):
    """A head without cores and two nodes of one core each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    running = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    for _ in range(2):
        running.add_node(**NODE)
    yield running
    running.shutdown()


def test_a_node_killed_in_mid_stage_leaves_the_rows_of_a_serial_run(cluster, tmp_path):
    alone, spread, root = (tmp_path / name for name in ("alone", "spread", "root"))
    sdcore("run", QUICKSTART, *LONGER, "--workspace", alone)
    where = [f"cluster.address={cluster.address}", f"cluster.root={root}"]
    with start("run", QUICKSTART, *LONGER, *where, "--workspace", spread) as process:
        # A run has checkpoints there from its first round to its last score.
        wait_for(process, lambda: len(list(root.glob("checkpoints/*/*/seed-3"))) == 2)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "was lost, and goes on elsewhere" in " ".join(said.split())
    without_cluster(spread)
    assert_same(spread, alone)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def without_cluster(workspace):
    """Take where the nodes are out of the stored settings, in which alone the runs differ."""
    with Store(workspace / DATABASE) as store:
        row = store.rows("experiments")
        settings = json.loads(row["config"].item())
        assert settings["cluster"].keys() >= {"address", "root"}
        config = json.dumps(settings | {"cluster": None}, separators=(",", ":"), ensure_ascii=False)
        store.replace(experiments=row.with_columns(config=pl.lit(config)))
