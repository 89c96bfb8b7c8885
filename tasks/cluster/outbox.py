"""A node's side: what it is given, and what it sends while it trains."""

from collections.abc import Mapping
from pathlib import Path
from threading import RLock

import polars as pl

from sdcore.errors import StoreError
from sdcore.store import parts
from sdcore.store.database import Store
from sdcore.store.parts import Folder, Part
from tasks.cluster.attempts import GIVEN
from tasks.cluster.checkpoints import prune, push
from tasks.run.condition_run import StoredPolicy


class Outbox:
    """Sends what a node's workspace stores, in order, to the attempt that it works on.

    Rows go as soon as they are stored, so that no paid critique is lost; those of a finished round
    once its checkpoint is below the root. So whoever goes on finds every stored round's weights.
    Stages that run side by side send one after the other.

    Args:
        workspace: folder of the node's own workspace.
        root: the cluster's.
        attempt: takes the parts.
    """

    def __init__(self, workspace: Path, root: Folder, attempt: Folder) -> None:
        self._workspace, self._root, self._attempt = workspace, root, attempt
        self._held: list[Part] = []
        self._sent, self._lock = 0, RLock()

    def add(self, frames: Mapping[str, pl.DataFrame], replaces: bool) -> None:
        """Take the rows of a transaction; send them unless they wait for a checkpoint."""
        with self._lock:
            self.flush()
            if any(len(frame) for frame in frames.values()):
                self._held.append(Part(frames, replaces))
            if "policies" not in frames:
                self.flush()

    def flush(self) -> None:
        """Send what waits, if its checkpoints are written.

        Raises:
            StoreError: the root cannot be written.
        """
        try:
            with self._lock:
                self._send()
        except OSError as error:
            raise StoreError(
                "rows and checkpoints cannot be sent",
                got=error,
                where=self._attempt.path,
                fix="see that the node may write below cluster.root; the same command goes on",
            ) from error

    def _send(self) -> None:
        policies = [policy for part in self._held for policy in _policies(part)]
        if any(not (self._workspace / policy.checkpoint).exists() for policy in policies):
            return
        for policy in policies:
            push(self._workspace, policy, self._root)
        while self._held:
            parts.write(self._attempt, self._held[0], self._sent + 1)
            self._sent += 1
            self._held.pop(0)
        for policy in policies:
            prune(self._workspace, policy, self._root)


def receive(attempt: Folder, database: Path) -> None:
    """Store the rows that an attempt begins with in a new workspace.

    Raises:
        StoreError: the attempt is not there: the run has given the work to another node.
    """
    try:
        data = attempt.files.cat_file((attempt / GIVEN).path)
    except FileNotFoundError as error:
        raise StoreError("the attempt is not there", got=error, where=attempt.path) from error
    with Store(database) as store:
        store.append_missing(**parts.unpacked(data, attempt.path).frames)


def _policies(part: Part) -> list[StoredPolicy]:
    frame = part.frames.get("policies")
    return [] if frame is None else StoredPolicy.from_frame(frame)
