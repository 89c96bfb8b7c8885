import subprocess
import sys

import pytest

from sdcore.distributed import controller
from tests.helpers.paths import ROOT
from tests.helpers.two_hands import Counter


def two_hands(*options):
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "tests.helpers.two_hands", *options,
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_all_ranks_follow_the_calls_of_rank_0_and_stay_together_after_an_error():
    run = two_hands()
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["7", "less than nothing", "10 10", "25", "103", "the end"]


@pytest.mark.slow
def test_an_error_of_one_rank_alone_ends_the_run():
    run = two_hands("apart")
    assert run.returncode == 1 and run.stdout == ""
    assert "TrainingError: rank 1 alone" in run.stderr and "Timeout (" not in run.stderr


def test_a_single_process_gets_the_object_itself():
    assert isinstance(controller.shared(lambda: Counter(3)), Counter)
