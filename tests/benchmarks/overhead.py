"""Share of a run's wall time that is not compute: orchestration, storage, tracking.

One seed of the quickstart on a real server, from start to table. Start-up is in it, so that a run
of three seeds has a smaller share.
"""

import os
import tempfile
import time
from pathlib import Path

from flows.server import prefect_server
from flows.services import PROJECT
from sdcore.config import load_experiment
from sdcore.timing import STOPWATCH

QUICKSTART = PROJECT / "deployments" / "experiments" / "quickstart.toml"
OVERHEAD = ("orchestration", "storage", "tracking")


def main() -> None:
    os.environ.pop("PREFECT_API_URL", None)
    settings = load_experiment(QUICKSTART, ["seeds=[0]"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with prefect_server(Path(folder)) as address:
            from flows.compare_contexts import compare_contexts
            from tasks.track import open_tracking

            open_tracking(Path(folder))
            address()
            start_up = time.perf_counter() - started
            compare_contexts(settings, Path(folder))
        wall = time.perf_counter() - started
    seconds = STOPWATCH.split(wall)
    share = sum(seconds[kind] for kind in OVERHEAD) / wall

    from _measure import report  # imports torch, which a run does while its server starts

    report(
        "overhead",
        share,
        "at most 0.05 of the wall time",
        share <= 0.05,
        wall_seconds=wall,
        start_up_seconds=start_up,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
