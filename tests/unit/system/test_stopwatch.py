import itertools
import threading

from sdcore.system import stopwatch


def test_nested_work_counts_for_the_innermost_kind(monkeypatch):
    # The clock reads 0, 1, 2, …: outer 0-5 holds inner 1-2 and inner 3-4.
    ticks = itertools.count()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(ticks))
    watch = stopwatch.Stopwatch()
    with watch.measure("compute"):
        with watch.measure("storage"):
            pass
        with watch.measure("storage"):
            pass
    assert watch.seconds == {"compute": 3, "storage": 2}


def test_what_another_thread_does_meanwhile_is_no_wall_time():
    watch = stopwatch.Stopwatch()

    def work():
        with watch.measure("storage"):
            pass

    with watch.measure("compute"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert list(watch.seconds) == ["compute"]


def test_what_is_not_measured_is_orchestration():
    watch = stopwatch.Stopwatch()
    watch.seconds.update(compute=6.0, tracking=0.5)
    # 10 s on the clock less 6.0 and 0.5
    expected = {"compute": 6.0, "storage": 0.0, "tracking": 0.5, "orchestration": 3.5}
    assert watch.split(10.0) == expected
