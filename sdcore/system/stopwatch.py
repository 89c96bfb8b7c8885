"""Where a run's wall time goes: compute, storage, tracking; what is left is orchestration."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by kind of work; nested measurements count for the innermost only.

    What other threads do beside the one that made it is not counted: it is no wall time.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._nested: list[float] = []
        self._thread = threading.get_ident()

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
            self.seconds[kind] += elapsed - self._nested.pop()
            if self._nested:
                self._nested[-1] += elapsed

    def split(self, wall: float) -> dict[str, float]:
        """Seconds by kind out of `wall` seconds; what is not measured is orchestration."""
        measured = {kind: self.seconds[kind] for kind in ("compute", "storage", "tracking")}
        return measured | {"orchestration": wall - sum(measured.values())}


STOPWATCH = Stopwatch()
