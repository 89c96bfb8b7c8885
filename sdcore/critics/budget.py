"""A spending limit for a critic that holds while several requests are in flight."""

import threading
from dataclasses import dataclass

from sdcore.config import Limits
from sdcore.errors import BudgetError


@dataclass(frozen=True)
class Paid:
    """Cost of requests: their price, and the tokens that were read and written."""

    cost: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Paid") -> "Paid":
        return Paid(self.cost + other.cost, self.tokens + other.tokens)

    def __sub__(self, other: "Paid") -> "Paid":
        return Paid(self.cost - other.cost, self.tokens - other.tokens)


class Budget:
    """Limits of cost and tokens; a request in flight counts with the most that it can cost.

    Several clients may share one: the models of a cascade.
    """

    def __init__(self, limits: Limits = Limits(), spent: Paid = Paid()) -> None:  # noqa: B008
        self._limits, self._spent, self._reserved = limits, spent, Paid()
        self._lock = threading.Lock()

    def take(self, worst: Paid) -> None:
        """Reserve the most that a request can cost.

        Raises:
            BudgetError: a limit does not allow it.
        """
        with self._lock:
            possible = self._reserved + worst
            all_ = self._spent + possible
            if self._limits.cost is not None and all_.cost > self._limits.cost:
                raise BudgetError(
                    "the critic's budget does not allow another request",
                    got=f"{self._spent.cost:.6g} spent, {possible.cost:.6g} possible",
                    expected=f"at most {self._limits.cost:.6g} in all",
                    fix="raise critic.max_budget, or design.max_cost of a search, and repeat the "
                    "command: paid critiques are stored",
                )
            if self._limits.tokens is not None and all_.tokens > self._limits.tokens:
                raise BudgetError(
                    "the critic's tokens do not allow another request",
                    got=f"{self._spent.tokens:,} read and written, {possible.tokens:,} possible",
                    expected=f"at most {self._limits.tokens:,} in all",
                    fix="raise critic.max_total_tokens, or design.max_critic_tokens of a search, "
                    "and repeat the command: paid critiques are stored",
                )
            self._reserved = possible

    def settle(self, worst: Paid, actual: Paid) -> None:
        """Replace a reservation by the actual cost."""
        with self._lock:
            self._reserved -= worst
            self._spent += actual
