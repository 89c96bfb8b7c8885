"""Shares of a run's wall time.

Compute is what models, critics and graders do, analysis the statistics and the pictures of them,
storage DuckDB and checkpoints, tracking MLflow. What is left is orchestration: Prefect, and handing
rows from one stage to the next.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

KINDS = ("compute", "analysis", "storage", "tracking")


class Stopwatch:
    """Adds up seconds by kind of work; nested measurements count for the innermost only.

    It counts what the thread that created it does. Other threads work at the same time, so that
    their seconds would be counted twice.
    """

    def __init__(self) -> None:
        self._started, self._thread = time.perf_counter(), threading.get_ident()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._nested: list[float] = []

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count the time inside the block as `kind`."""
        if threading.get_ident() != self._thread:
            yield
            return
        start = time.perf_counter()
        self._nested.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self._seconds[kind] += elapsed - self._nested.pop()
            if self._nested:
                self._nested[-1] += elapsed

    def split(self) -> dict[str, float]:
        """Seconds by kind since the watch was made; what is not measured is orchestration."""
        measured = {kind: self._seconds[kind] for kind in KINDS}
        wall = time.perf_counter() - self._started
        return measured | {"orchestration": wall - sum(measured.values())}
