"""Tests; see `pyproject.toml` for the marks."""

import os
import shutil
import sys
from pathlib import Path

if shutil.which("nvidia-smi") is None:
    # Kernels run on the CPU. Triton reads this when it is imported, by whatever comes first.
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.append(str(Path(__file__).parents[1] / ".triton"))  # of `make triton`
