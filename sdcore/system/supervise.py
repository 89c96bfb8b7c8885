"""Runs a command in a process group of its own and ends the whole group when its parent is gone.

It is a program (standard library only), not to be imported: `guard.py PARENT_PID COMMAND...`.
A server has children that outlive a kill -9 of it, and a parent that is killed cannot clean up.
The guard survives both by watching: the group ends when the parent goes, when the command ends, or
when the guard is told to stop; and the command is told to stop if the guard itself is killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

EVERY = 0.2  # seconds between two looks at the parent
GRACE = 10.0  # seconds between asking and killing


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends or the parent does; its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    child = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run here
    )
    try:
        while os.getppid() == parent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(EVERY)
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would leave the group alive
        end(child)


def end(child: "subprocess.Popen[bytes]") -> None:
    """Ask the command to stop, if it still runs; then kill what is left of its group."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
