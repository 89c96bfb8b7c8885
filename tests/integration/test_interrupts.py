"""Ctrl-C: the first ends the batch at work, in bounded time; the second ends the process."""

import os
import signal
import subprocess
import threading
from types import SimpleNamespace

import psutil
import pytest

from tasks.run import interrupts
from tasks.run.interrupts import Interrupts, Stopped, leave
from tasks.run.progress import Panel


@pytest.fixture
def listening():
    """Interrupts that listen, the texts with which they ended the process, and an event for it."""
    said, ended = [], threading.Event()

    def end(text):
        said.append(text)
        ended.set()

    asked = Interrupts(lambda: "samples: 8 of 32", end)
    asked.listen()
    yield asked, said, ended
    asked.restore()


def test_the_first_asks_and_says_what_it_waits_for_the_second_ends(listening, capsys):
    asked, said, _ = listening
    asked.stop_if_asked()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped):
        asked.stop_if_asked()
    printed = " ".join(capsys.readouterr().err.split())
    assert "the batch at work (samples: 8 of 32), in 30 s at most" in printed and not said
    signal.raise_signal(signal.SIGINT)
    assert said == ["stopped at once"]


def test_a_batch_that_does_not_end_is_ended(listening, monkeypatch):
    _, said, ended = listening
    monkeypatch.setattr(interrupts, "DRAIN", 0.01)
    signal.raise_signal(signal.SIGINT)
    assert ended.wait(60)
    assert said == ["the batch at work did not end within 0 s: stopped"]


def test_a_session_that_is_over_ends_nothing(listening, monkeypatch):
    asked, said, ended = listening
    before = signal.getsignal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    asked.restore()
    assert signal.getsignal(signal.SIGINT) != before
    for thread in threading.enumerate():
        if thread.name == "Interrupts":
            thread.join(60)
    assert not ended.is_set() and not said


def test_who_leaves_takes_the_started_processes_along(monkeypatch, capfd):
    def exit_(code):
        raise SystemExit(code)

    child = subprocess.Popen(["sleep", "600"])
    started = psutil.Process(child.pid)
    mine = SimpleNamespace(children=lambda recursive: [started])
    system = SimpleNamespace(Process=lambda: mine, NoSuchProcess=psutil.NoSuchProcess)
    monkeypatch.setattr(interrupts, "psutil", system)
    monkeypatch.setattr(os, "_exit", exit_)
    with pytest.raises(SystemExit) as ended:
        leave("stopped at once")
    assert ended.value.code == 130 and child.wait(60) == -signal.SIGTERM
    assert "stopped at once; all but the batch at work is stored" in capfd.readouterr().err


def test_the_panel_names_the_innermost_work():
    panel = Panel()
    assert panel.at_work() == ""
    with panel.bar("rounds", 3), panel.bar("samples", 32) as advance:
        advance(8)
        assert panel.at_work() == "samples: 8 of 32"
    assert panel.at_work() == ""
