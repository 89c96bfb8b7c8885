"""Progress of long work: bars on a terminal, silence elsewhere (the flow's log lines remain)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

CONSOLE = Console(stderr=True)
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)
_progress = Progress(*_COLUMNS, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; the block calls the yielded function with its advance."""
    outermost = not _progress.live.is_started
    if outermost:
        _progress.start()
    row = _progress.add_task(description, total=total)
    try:
        yield lambda count: _progress.advance(row, count)
    finally:
        _progress.remove_task(row)
        if outermost:
            _progress.stop()


def note(text: str) -> None:
    """Print a line above the bars; without a terminal these lines are all there is."""
    CONSOLE.print(text, highlight=False, markup=False)
