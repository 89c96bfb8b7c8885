"""The first Ctrl-C stops a run where nothing is half done; the second stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import psutil

from sdcore.errors import SdcoreError
from tasks.run.progress import CONSOLE

DRAIN = 30.0  # seconds from the first Ctrl-C until the run stops at once
_GOES_ON = "the same command, or `sdcore resume RUN`, goes on from here"


class Stopped(SdcoreError):
    """A run was asked to stop, and has stored what it had done."""

    exit_code = 130  # what shells give for an interrupted command


class Interrupts:
    """Turns Ctrl-C into a request that `stop_if_asked` fulfils, in `DRAIN` seconds at most.

    Args:
        at_work: names what the run is doing, for the line that is printed at the first Ctrl-C.
        end: ends the process at once; `leave` by default.
    """

    def __init__(
        self,
        at_work: Callable[[], str] = lambda: "",
        end: Callable[[str], object] | None = None,
    ) -> None:
        self._at_work, self._leave = at_work, end or leave
        self._asked, self._over = False, threading.Event()
        self._before: signal._HANDLER | None = None

    def listen(self) -> None:
        """Take over Ctrl-C, in the one thread that may: Python gives signals to the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
            # Not started by the handler, which may interrupt the start of another thread.
            threading.Thread(target=self._watch, name="Interrupts", daemon=True).start()

    def restore(self) -> None:
        """Give Ctrl-C back to whoever had it."""
        self._over.set()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def request(self) -> None:
        """Ask all threads to stop where nothing is half done, as the first Ctrl-C does."""
        self._asked = True

    def stop_if_asked(self) -> None:
        """Stop here, where nothing is half done.

        Raises:
            Stopped: Ctrl-C was pressed since the session began, or `request` called.
        """
        if self._asked:
            raise Stopped("stopped on request; what was done is stored", fix=_GOES_ON)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._leave("stopped at once")
            return
        self.request()
        # Not to Prefect's log: its locks may be held by the very code that was interrupted.
        work = self._at_work()
        CONSOLE.print(
            f"Stopping after the batch at work{f' ({work})' if work else ''}, in {DRAIN:.0f} s at "
            "most; press Ctrl-C again to stop at once.",
            highlight=False,
            markup=False,
        )

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            if self._asked:
                if not self._over.wait(DRAIN):
                    self._leave(f"the batch at work did not end within {DRAIN:.0f} s: stopped")
                return


def leave(said: str) -> NoReturn:
    """End this process and all that it has started, now.

    It is like a kill: what is stored is whole, and the batch at work is lost. No lock is waited
    for, since whoever holds it may be what was interrupted.
    """
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    line = f"\n{cursor}error: {said}; all but the batch at work is stored\n  fix: {_GOES_ON}\n"
    os.write(2, line.encode())
    os._exit(Stopped.exit_code)
