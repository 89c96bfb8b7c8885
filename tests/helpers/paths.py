"""Folders of the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
EXPERIMENTS = ROOT / "deployments" / "experiments"
QUICKSTART = EXPERIMENTS / "quickstart.toml"
