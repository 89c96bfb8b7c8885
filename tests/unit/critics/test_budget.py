import threading

import pytest

from sdcore.config import Limits
from sdcore.critics.budget import Budget, Paid
from sdcore.errors import BudgetError


def test_what_is_under_way_counts_as_the_most_it_can_cost_until_it_is_settled():
    budget = Budget(Limits(cost=10.0), Paid(1.0))
    budget.take(Paid(4.0))
    budget.take(Paid(5.0))  # 1 + 4 + 5
    with pytest.raises(BudgetError, match=r"1 spent, 10 possible[\s\S]*at most 10 in all"):
        budget.take(Paid(1.0))
    budget.settle(Paid(4.0), Paid(0.5))  # 1.5 + 5
    budget.take(Paid(3.5))
    budget.settle(Paid(5.0), Paid(5.0))
    budget.settle(Paid(3.5), Paid(0.0))  # 6.5
    with pytest.raises(BudgetError):
        budget.take(Paid(3.6))


def test_without_a_limit_all_is_allowed():
    Budget().take(Paid(1e12, 10**12))


def test_threads_do_not_overdraw_it():
    budget, granted = Budget(Limits(tokens=10)), []

    def take() -> None:
        for _ in range(50):
            try:
                budget.take(Paid(tokens=1))
            except BudgetError:
                return
            granted.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 10
