"""The first Ctrl-C stops a run where nothing is half done; the second stops at once."""

import signal
import threading
from types import FrameType

from sdcore.errors import SdcoreError
from tasks.run.progress import CONSOLE


class Stopped(SdcoreError):
    """A run was asked to stop, and has stored what it had done."""

    exit_code = 130  # what shells give for an interrupted command


class Interrupts:
    """Turns Ctrl-C into a request that `stop_if_asked` fulfils."""

    def __init__(self) -> None:
        self._asked = False
        self._before: signal._HANDLER | None = None

    def listen(self) -> None:
        """Take over Ctrl-C, in the one thread that may: Python gives signals to the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def restore(self) -> None:
        """Give Ctrl-C back to whoever had it."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def stop_if_asked(self) -> None:
        """Stop here, where nothing is half done.

        Raises:
            Stopped: Ctrl-C was pressed since the session began.
        """
        if self._asked:
            raise Stopped(
                "stopped on request; what was done is stored",
                fix="the same command, or `sdcore resume RUN`, goes on from here",
            )

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not to Prefect's log: its locks may be held by the very code that was interrupted.
        CONSOLE.print("Stopping after the batch at work; press Ctrl-C again to stop at once.")
