"""Resources that one process holds open while it works in a workspace."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from sdcore.store.database import Store
from sdcore.system.private import private_files
from sdcore.system.stopwatch import Stopwatch
from tasks.run.interrupts import Interrupts
from tasks.run.live import LiveModels
from tasks.run.progress import Panel, note
from tasks.tracking.client import Tracking, store_errors

if TYPE_CHECKING:
    from tasks.cluster.outbox import Outbox

DATABASE = "sdcore.duckdb"


class Session:
    """The tables, the tracking, the live models and the interrupts of one process.

    Open it in a `with` block: at its end servers are stopped and the tables are whole. Not a
    dataclass, since Prefect walks through every field of a dataclass that a task is given.

    Args:
        root: folder of the workspace.
        outbox: on a node of a cluster, sends what is stored to the run's own process, which alone
            logs to MLflow.
        workers: processes of the command, this one the first, among which the GPUs are shared out.
    """

    def __init__(self, root: Path, outbox: "Outbox | None" = None, workers: int = 1) -> None:
        self.root, self.outbox, self.workers = root, outbox, workers
        self.clock = Stopwatch()
        self.panel = Panel()
        self.interrupts = Interrupts(self.panel.at_work)
        self.models = LiveModels(root, workers)
        self._opened = ExitStack()
        self.store = Store(
            root / DATABASE,
            timeout=None,  # nothing is lost while it waits
            threads=1,
            timed=partial(self.clock.measure, "storage"),
            say=note,
            stored=self._stored,
        )

    @contextmanager
    def tracking(self) -> Iterator[Tracking]:
        """The workspace's MLflow, for as long as the block runs; the first use opens it.

        Raises:
            SdcoreError: MLflow is a shared one, and cannot be used.
        """
        with self.clock.measure("tracking"):
            tracking = self._tracking
            with store_errors(tracking.place):
                yield tracking

    def _stored(self, rows: Mapping[str, pl.DataFrame], replaced: bool) -> None:
        if self.outbox is not None:
            self.outbox.add(rows, replaced)

    def send(self) -> None:
        """On a node of a cluster, send what is stored and waits for its checkpoint."""
        if self.outbox is not None:
            self.outbox.flush()

    def forget_models(self) -> None:
        """Close all models and engines, to leave memory to others; the next use loads them."""
        self.models.close()
        self.models = LiveModels(self.root, self.workers)

    @cached_property
    def _tracking(self) -> Tracking:
        return Tracking(self.root)

    def __enter__(self) -> Self:
        self._opened.enter_context(private_files())  # what is created now is its owner's alone
        self._opened.callback(self.store.close)
        self._opened.callback(self._close_tracking)
        self._opened.callback(self._close_models)
        self._opened.callback(self.interrupts.restore)
        self.interrupts.listen()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self._opened.close()  # all of it, also where a part fails
        except Exception as second:
            if error is None:
                raise
            note(f"WARNING: not everything could be closed: {second}")

    def _close_models(self) -> None:
        self.models.close()

    def _close_tracking(self) -> None:
        if "_tracking" in self.__dict__:
            self._tracking.close()
