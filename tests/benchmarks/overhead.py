"""Share of the quickstart's wall time that is not compute: orchestration, storage, tracking.

The command itself in a new workspace, from its start to its table: start-up is in it.
Usage: overhead.py [dotted settings ...]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import report

from flows.services import PROJECT

QUICKSTART = PROJECT / "deployments" / "experiments" / "quickstart.toml"
OVERHEAD = ("orchestration", "storage", "tracking")


def main(*overrides: str) -> None:
    command = [Path(sys.executable).with_name("sdcore"), "run", QUICKSTART, *overrides, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.check_output([*command, "--workspace", folder])
    seconds = json.loads(output)["seconds"]
    share = sum(seconds[kind] for kind in OVERHEAD) / seconds["wall"]
    report(
        "overhead",
        share,
        "at most 0.05 of the wall time",
        share <= 0.05,
        seconds={kind: round(spent, 2) for kind, spent in seconds.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
