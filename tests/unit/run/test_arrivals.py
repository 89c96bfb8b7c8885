"""Rollouts on their way from one stage to the next."""

import threading
from dataclasses import replace

from tasks.run.arrivals import Arrivals
from tests.unit.test_rollouts import made

A, B, C = ([made(problem, index) for index in range(2)] for problem in "abc")


def test_a_question_is_passed_on_once_it_is_whole():
    arrivals = Arrivals(size=2)
    taken = iter(arrivals)
    arrivals.add([A[0], B[1], B[0]])
    assert next(taken) == B
    arrivals.add([C[0], A[1], C[1]])
    assert next(taken) == [*A, *C]
    arrivals.add([A[0]])  # known: nothing new for the taker
    arrivals.end()
    assert list(taken) == []
    assert list(arrivals) == [[*B, *A, *C]]  # whoever tries again gets all


def test_the_first_of_two_rollouts_with_one_id_counts():
    arrivals = Arrivals(size=2)
    arrivals.add([A[0], replace(A[0], text="another"), A[1]])
    arrivals.end()
    assert list(arrivals) == [A]
    assert arrivals.rollouts == A


def test_a_taker_waits_for_another_thread_and_half_a_question_goes_nowhere():
    arrivals, taken = Arrivals(size=2), []
    taker = threading.Thread(target=lambda: taken.extend(arrivals))
    taker.start()
    arrivals.add([*A, B[0]])
    arrivals.end()
    taker.join(timeout=60)
    assert [rollout for group in taken for rollout in group] == A
    assert arrivals.rollouts == [*A, B[0]]
