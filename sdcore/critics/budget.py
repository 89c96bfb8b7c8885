"""Money that may be spent on a paid service, kept to even while several requests are under way."""

import threading

from sdcore.errors import BudgetError


class Budget:
    """A limit, None for none; a request under way counts as the most that it can cost."""

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self._limit, self._spent, self._reserved = limit, spent, 0.0
        self._lock = threading.Lock()

    def take(self, worst: float) -> None:
        """Reserve what a request can cost.

        Raises:
            BudgetError: so much is not left.
        """
        with self._lock:
            if self._limit is not None and self._spent + self._reserved + worst > self._limit:
                raise BudgetError(
                    "the critic's budget does not allow another request",
                    got=f"{self._spent:.6g} spent, {self._reserved + worst:.6g} possible",
                    expected=f"at most {self._limit:.6g} in all",
                    fix="what was paid for is stored: raise critic.max_budget and go on",
                )
            self._reserved += worst

    def settle(self, worst: float, cost: float) -> None:
        """Replace what was reserved by what it cost."""
        with self._lock:
            self._reserved -= worst
            self._spent += cost
