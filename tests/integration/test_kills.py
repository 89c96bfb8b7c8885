"""A run of the quickstart's size that is killed twenty times ends as if it never had been."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import assert_same, count, kill, sdcore, start, still_runs, wait_for

pytestmark = [pytest.mark.kills, pytest.mark.usefixtures("prefect")]
KILLS = 20
# How many of them come while the rows of each table are written. Evaluation writes most rollouts,
# each training round one update, and the last stage the comparisons, before it is done.
WHILE = {"rollouts": 9.5, "updates": 9.5, "comparisons": 1.0}


def test_twenty_kills_leave_no_trace(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sdcore("run", QUICKSTART, "--quick", "--workspace", whole)
    shares = {table: kills / count(whole, table) for table, kills in WHILE.items()}
    drawn = random.Random(0)
    for earlier in range(KILLS):
        kill_at(earlier + drawn.random(), killed, shares, delay=2 * drawn.random())
    sdcore("run", QUICKSTART, "--quick", "--workspace", killed)
    assert_same(killed, whole)


def kill_at(moment: float, workspace: Path, shares: Mapping[str, float], delay: float) -> None:
    """Run until the progress has passed a moment, and more is stored than before; then kill.

    Rows come several seconds' worth at a time, so that the last but one kill may find all of them:
    the last then comes while the run starts.
    """

    def progress() -> float:
        return sum(share * count(workspace, table) for table, share in shares.items())

    goal = min(max(moment, progress()), KILLS - 0.001)
    process = start("run", QUICKSTART, "--quick", "--workspace", workspace)
    wait_for(process, lambda: progress() > goal)
    still_runs(process, delay)  # not just after something was stored
    kill(process)
