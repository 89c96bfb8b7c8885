"""Progress of long work: a live panel on a terminal, in Prefect's UI, and plain lines elsewhere."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError, PrefectException
from prefect.logging import get_run_logger
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sdcore.system.consoles import PlainConsole

CONSOLE = PlainConsole(stderr=True)
EVERY = 20.0  # seconds between two updates of Prefect's progress artifact; short work has none
LINE = 60.0  # seconds between two lines where no bar can be drawn, such as in a log file
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[counts]}"),
)


class Advance(Protocol):
    """Advances a progress bar: how much, and what of it is worth showing."""

    def __call__(
        self,
        count: int,
        *,
        cached: int = 0,
        failed: int = 0,
        tokens: int = 0,
        critic_tokens: int = 0,
        cost: float = 0.0,
    ) -> None:
        """`cached` and `failed` are parts of `count`; `cost` is what the critic's tokens cost."""


class Panel:
    """The bars of a session, one below another."""

    def __init__(self) -> None:
        self._progress = Progress(
            *_COLUMNS, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal
        )
        self._at_work: dict[TaskID, str] = {}  # of each open bar, the innermost last
        self._said = time.monotonic()

    def at_work(self) -> str:
        """The innermost bar in words, such as "train samples of grpo/seed-0: 8 of 32".

        It waits for no lock, so that a signal handler may call it.
        """
        return next(reversed(self._at_work.values()), "")

    @contextmanager
    def bar(self, description: str, total: int, *, part: bool = False) -> Iterator[Advance]:
        """Show a bar while the block runs; the block calls what is yielded as work gets done.

        With `part` the whole bar is one step of the bar around it, which moves along and so knows
        the time that is left before the first step is done.
        """
        outermost = not self._progress.live.is_started
        if outermost:
            self._progress.start()
        around = self._progress.tasks[-1] if part and self._progress.tasks else None
        before = around.completed if around else 0.0
        row = self._progress.add_task(description, total=total, counts="")
        counts, artifact = Counter[str](), _Artifact(description)
        self._at_work[row] = f"{description}: 0 of {total}"
        start = time.monotonic()

        def advance(count: int, **more: float) -> None:
            counts.update(done=count, **more)  # type: ignore[call-overload]
            text = summary(counts, time.monotonic() - start)
            share = counts["done"] / max(total, 1)
            self._at_work[row] = f"{description}: {counts['done']} of {total}"
            self._progress.update(row, completed=counts["done"], counts=text)
            if around:
                self._progress.update(around.id, completed=before + share)
            self._say(text)
            artifact.show(share, text)

        try:
            yield advance
            artifact.finish()
        finally:
            del self._at_work[row]
            self._progress.remove_task(row)
            if outermost:
                self._progress.stop()

    def _say(self, text: str) -> None:
        """Print all bars as one line of a log, the outermost first, if the last is a while ago."""
        if self._progress.disable and time.monotonic() - self._said > LINE:
            self._said = time.monotonic()
            line = " · ".join(filter(None, [" › ".join([*self._at_work.values()]), text]))
            CONSOLE.print(line, highlight=False, markup=False)


def summary(counts: Counter[str], seconds: float) -> str:
    """Details of work in progress, such as "96 cached · 1,204 tokens/s"."""
    rate = counts["tokens"] / max(seconds, 1e-3)
    parts = {
        f"{counts['cached']:,} cached": counts["cached"],
        f"{counts['failed']:,} failed": counts["failed"],
        f"{rate:,.0f} tokens/s": counts["tokens"],
        f"critic {counts['critic_tokens']:,} tokens": counts["critic_tokens"],
        f"cost {counts['cost']:.2f}": counts["cost"],
    }
    return " · ".join(text for text, number in parts.items() if number)


def note(text: str) -> None:
    """Say a line above the bars and in the log of the Prefect run, if there is one."""
    CONSOLE.print(text, highlight=False, markup=False)
    try:
        get_run_logger().info(text)
    except MissingContextError:
        return  # called outside of a run, as a library


def artifact_key(*parts: str) -> str:
    """A key that Prefect allows: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class _Artifact:
    """The progress artifact of one bar, made once the work has taken a while.

    Where Prefect's server fails, the work goes on without the picture.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._id: UUID | None = None
        self._next = time.monotonic() + EVERY
        self._drawn = bool(FlowRunContext.get() or TaskRunContext.get())

    def show(self, share: float, text: str) -> None:
        if not self._drawn or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        about = " · ".join(filter(None, [self._description, text]))
        with self._unless_prefect_fails():
            if self._id is None:
                key = artifact_key("progress", self._description)
                made = create_progress_artifact(100 * share, key=key, description=about)
                assert isinstance(made, UUID), "no event loop runs here"
                self._id = made
            else:
                update_progress_artifact(self._id, 100 * share, description=about)

    def finish(self) -> None:
        if self._drawn and self._id is not None:
            with self._unless_prefect_fails():
                update_progress_artifact(self._id, 100.0)

    @contextmanager
    def _unless_prefect_fails(self) -> Iterator[None]:
        try:
            yield
        except (HTTPError, PrefectException) as error:
            self._drawn = False
            note(f"WARNING: no more progress of {self._description} in Prefect: {error}")
