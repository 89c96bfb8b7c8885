"""A spending limit for a paid service that holds while several requests are in flight."""

import threading

from sdcore.errors import BudgetError


class Budget:
    """A limit, None for none; a request in flight counts with the most that it can cost."""

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self._limit, self._spent, self._reserved = limit, spent, 0.0
        self._lock = threading.Lock()

    def take(self, worst: float) -> None:
        """Reserve the most that a request can cost.

        Raises:
            BudgetError: the limit does not allow it.
        """
        with self._lock:
            if self._limit is not None and self._spent + self._reserved + worst > self._limit:
                raise BudgetError(
                    "the critic's budget does not allow another request",
                    got=f"{self._spent:.6g} spent, {self._reserved + worst:.6g} possible",
                    expected=f"at most {self._limit:.6g} in all",
                    fix="raise critic.max_budget and repeat the command: paid critiques are stored",
                )
            self._reserved += worst

    def settle(self, worst: float, cost: float) -> None:
        """Replace a reservation by the actual cost."""
        with self._lock:
            self._reserved -= worst
            self._spent += cost
