"""Which of several servers of one model a request goes to."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

REST = 30.0  # seconds for which a server that gave no answer is not asked, if there is another one


class Servers:
    """Spread requests over servers, at most so many under way at each.

    A request goes to the server with the fewest under way, and waits if each has its most. One that
    has just failed is left out, unless all have.

    Args:
        addresses: of the servers.
        most: requests under way at one of them.
        rest: seconds for which a server that failed is left out.
    """

    def __init__(self, addresses: Sequence[str], most: int, rest: float = REST) -> None:
        self._under_way = dict.fromkeys(addresses, 0)
        self._resting = dict.fromkeys(addresses, 0.0)  # until this time
        self._most, self._rest = most, rest
        self._changed = threading.Condition()

    @property
    def total(self) -> int:
        """Requests under way at all of them together, at most."""
        return self._most * len(self._under_way)

    @contextmanager
    def one(self, *, passing: type[Exception]) -> Iterator[str]:
        """Wait for a free server, and count as one of its requests while the block runs.

        Args:
            passing: an error of the block that means that the server gave no answer.
        """
        with self._changed:
            self._changed.wait_for(self._free)
            address = min(self._free(), key=self._under_way.__getitem__)
            self._under_way[address] += 1
        try:
            yield address
        except passing:
            with self._changed:
                self._resting[address] = time.monotonic() + self._rest
            raise
        finally:
            with self._changed:
                self._under_way[address] -= 1
                self._changed.notify_all()

    def _free(self) -> list[str]:
        now = time.monotonic()
        rested = [each for each, until in self._resting.items() if until <= now]
        return [each for each in rested or self._under_way if self._under_way[each] < self._most]
