"""The script for GPUs runs, at toy sizes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.night
def test_every_row_is_measured_and_sdcore_is_exact():
    run = subprocess.run(
        [sys.executable, ROOT / "tests/benchmarks/gpu.py", "--toy", "loss", "step", "engine"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 8
    assert all(row["card"] == "toy" and row["headline"] > 0 for row in rows)
    for row in rows[:6]:
        losses = row["losses"]
        assert abs(losses["sdcore"] / losses["exact"] - 1) < 0.02, row
