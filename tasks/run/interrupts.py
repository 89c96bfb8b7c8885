"""The first Ctrl-C lets the stage at work finish and save; the second stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sdcore.errors import SdcoreError
from tasks.run.progress import CONSOLE

_asked: list[int] = []


class Stopped(SdcoreError):
    """A run was asked to stop, and has stored all that it had done."""

    exit_code = 130  # what shells give for an interrupted command


@contextmanager
def draining() -> Iterator[None]:
    """Within this block Ctrl-C is a request that `stop_if_asked` fulfils."""
    before = signal.signal(signal.SIGINT, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _asked.clear()


def stop_if_asked() -> None:
    """Called where nothing is half done.

    Raises:
        Stopped: Ctrl-C was pressed since the run began.
    """
    if _asked:
        raise Stopped(
            "stopped on request; all that was done is stored",
            fix="the same command, or `sdcore resume RUN`, goes on from here",
        )


def _ask(number: int, frame: FrameType | None) -> None:
    if _asked:
        raise KeyboardInterrupt
    _asked.append(number)
    # Not to Prefect's log: its locks may be held by the very code that was interrupted.
    CONSOLE.print("Stopping after what is at work now; press Ctrl-C again to stop at once.")
