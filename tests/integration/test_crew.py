import subprocess
import sys

import pytest

from sdcore.distributed import controller
from tests.helpers.paths import ROOT
from tests.helpers.two_hands import Counter


@pytest.mark.slow
def test_what_rank_0_calls_all_ranks_do_and_an_error_leaves_them_together():
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "tests.helpers.two_hands",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["7", "less than nothing", "10 10", "103", "the end"]


def test_alone_there_is_nothing_to_share():
    assert isinstance(controller.shared(lambda: Counter(3)), Counter)
