"""Share of the quickstart's wall time that is not compute: orchestration, storage, tracking.

The command itself in a new workspace, from the start of its process to its table. Start-up (imports
and Prefect's server) is shown apart: it does not grow with the run.
Usage: overhead.py [dotted settings ...]
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _measure import report

from flows.servers.standing import PROJECT

QUICKSTART = PROJECT / "deployments" / "experiments" / "quickstart.toml"
OVERHEAD = ("orchestration", "storage", "tracking")


def main(*overrides: str) -> None:
    command = [Path(sys.executable).with_name("sdcore"), "run", QUICKSTART, *overrides, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with subprocess.Popen([*command, "--workspace", folder], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            table = run.stdout.readline()
            wall = time.perf_counter() - start
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, run.args)
    seconds = json.loads(table)["seconds"]
    seconds["start-up"] += wall - sum(seconds.values())  # the command's own watch starts later
    share = sum(seconds[kind] for kind in OVERHEAD) / wall
    report(
        "overhead",
        share,
        "at most 0.10 of the wall time, start-up apart",
        share <= 0.10,
        wall=round(wall, 2),
        seconds={kind: round(spent, 2) for kind, spent in seconds.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
