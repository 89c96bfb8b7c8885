import threading

import pytest

from sdcore.critics.budget import Budget
from sdcore.errors import BudgetError


def test_what_is_under_way_counts_as_the_most_it_can_cost_until_it_is_settled():
    budget = Budget(10.0, spent=1.0)
    budget.take(4.0)
    budget.take(5.0)  # 1 + 4 + 5
    with pytest.raises(BudgetError, match=r"1 spent, 10 possible[\s\S]*at most 10 in all"):
        budget.take(1.0)
    budget.settle(4.0, 0.5)  # 1.5 + 5
    budget.take(3.5)
    budget.settle(5.0, 5.0)
    budget.settle(3.5, 0.0)  # 6.5
    with pytest.raises(BudgetError):
        budget.take(3.6)


def test_without_a_limit_all_is_allowed():
    Budget(None).take(1e12)


def test_threads_do_not_overdraw_it():
    budget, granted = Budget(10.0), []

    def take() -> None:
        for _ in range(50):
            try:
                budget.take(1.0)
            except BudgetError:
                return
            granted.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 10
