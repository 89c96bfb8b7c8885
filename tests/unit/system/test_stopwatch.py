import itertools

import pytest

from sdcore.system import stopwatch


@pytest.fixture
def ticking(monkeypatch):
    """A clock that reads 0, 1, 2, …"""
    ticks = itertools.count()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(ticks)))


def test_nested_work_counts_for_the_innermost_kind_and_the_rest_is_orchestration(ticking):
    # The watch starts at 0; outer 1-6 holds inner 2-3 and inner 4-5; split reads 7.
    watch = stopwatch.Stopwatch()
    with watch.measure("compute"):
        with watch.measure("storage"):
            pass
        with watch.measure("storage"):
            pass
    expected = {"compute": 3.0, "analysis": 0.0, "storage": 2.0, "tracking": 0.0}
    expected["orchestration"] = 2.0
    assert watch.split() == expected


def test_what_fails_is_measured_too(ticking):
    watch = stopwatch.Stopwatch()
    with pytest.raises(ValueError, match="x"), watch.measure("tracking"):
        raise ValueError("x")
    assert watch.split()["tracking"] == 1.0
