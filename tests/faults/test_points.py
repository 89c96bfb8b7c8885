"""One fault at a commit, a rename, an fsync or a call of MLflow: the next run makes it good.

A drawn sample is a part of `make test`, all of them of `make test-faults`.
"""

import os
import random
import subprocess
import sys

import pytest

from tests.helpers.paths import QUICKSTART, ROOT
from tests.helpers.runs import assert_same
from tests.helpers.small import SMALL, run

pytestmark = pytest.mark.usefixtures("prefect")
PASSES = {"commit": 40, "rename": 9, "fsync": 60, "mlflow": 40}  # fewer than a small run has
FAULTS = ("kill", "ENOSPC", "EIO", "EACCES")
DRAWN = random.Random(0)
POINTS = [
    (point, DRAWN.randint(1, passes), fault)
    for point, passes in PASSES.items()
    for fault in FAULTS
    for _ in range(2)
]
SAMPLE = (POINTS[24],)


@pytest.mark.parametrize(
    ("point", "nth", "fault"),
    [pytest.param(*each, marks=[] if each in SAMPLE else pytest.mark.night) for each in POINTS],
)
def test_the_next_run_ends_as_an_undisturbed_one(finished, tmp_path, point, nth, fault):
    faulty = [sys.executable, "-m", "tests.helpers.faulty", point, nth, fault]
    broken = subprocess.run(
        [*map(str, faulty), "run", QUICKSTART, *SMALL, "--workspace", tmp_path],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if fault == "kill":
        assert broken.returncode == -9
    elif broken.returncode:  # else a retry has made it good
        assert broken.returncode == 1 and "Traceback" not in broken.stderr
        assert "error: " in broken.stderr
    run(tmp_path)
    assert_same(tmp_path, finished[0])
