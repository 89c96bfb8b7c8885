"""A run under torchrun: rank 0 runs the pipeline, the other ranks train with it.

All ranks hold one common object, the trainer. Rank 0 creates it and calls its methods; each call is
broadcast first, so that the other ranks make the same calls in the same order.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
from torch import distributed

from sdcore.distributed import collectives
from sdcore.errors import SdcoreError

Made = TypeVar("Made")

PATIENCE = timedelta(days=7)  # how long the other ranks wait while rank 0 samples
AGREEMENT = timedelta(minutes=5)  # how long a rank that failed waits to hear that rank 0 did too


@dataclass(frozen=True)
class _Call:
    """One order to the other ranks: call a method of the shared object.

    `method` is None for the order to create the object with `arguments[0]`. `failure` is the key
    under which rank 0 stores that it failed.
    """

    method: str | None
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    failure: str = field(default_factory=lambda: f"failure {uuid4().hex}")


def lead(command: Callable[[], None]) -> None:
    """Run a command on rank 0; on the other ranks, follow its calls until it ends.

    An error that is not an `SdcoreError`, or not one of all ranks, may leave them at different
    points of the program: the rank then exits with it, and torchrun ends the others.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(timeout=PATIENCE)
    if collectives.rank_and_world_size()[0] > 0:
        _follow()
        return
    try:
        command()
    except (SystemExit, SdcoreError):
        _dismiss()
        raise
    _dismiss()


def shared(make: Callable[[], Made]) -> Made:
    """Create an object on every rank; calling a method on rank 0 calls it on all ranks.

    Only one may exist; creating another invalidates the first. `make` and the arguments of methods
    must survive pickling. In a single process, return the object itself.
    """
    alone = collectives.rank_and_world_size()[1] == 1
    return make() if alone else cast(Made, _Shared(make))


class _Shared:
    """Rank 0's side of a shared object."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._own = _ordered(_Call(None, (make,)), make)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._own, name)
        if not inspect.ismethod(attribute):
            return attribute

        def everywhere(*arguments: object, **keywords: object) -> Any:
            call = _Call(name, arguments, keywords)
            return _ordered(call, lambda: attribute(*arguments, **keywords))

        return everywhere


def _ordered(call: _Call, own: Callable[[], Made]) -> Made:
    """Order a call of the other ranks, and make rank 0's own."""
    _send(call)
    try:
        return own()
    except SdcoreError:
        _store().set(call.failure, "")
        raise


def _follow() -> None:
    own: Any = None
    while (call := _received()) is not None:
        try:
            if call.method is None:
                own = None  # free its memory before the next one is made
                own = call.arguments[0]()
            else:
                getattr(own, call.method)(*call.arguments, **call.keywords)
        except SdcoreError:
            if not _failed_on_rank_0(call):  # it waits in an exchange that this rank has left
                raise
    distributed.destroy_process_group()


def _failed_on_rank_0(call: _Call) -> bool:
    """Return whether rank 0 raises the same error, and reports it."""
    try:
        _store().wait([call.failure], AGREEMENT)
    except distributed.DistStoreError:
        return False
    return True


def _store() -> Any:
    """Connect to torchrun's store, where a rank can leave word while others wait in an exchange."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]


def _dismiss() -> None:
    _send(None)
    distributed.destroy_process_group()


def _send(call: _Call | None) -> None:
    distributed.broadcast_object_list([call], src=0)


def _received() -> _Call | None:
    calls: list[_Call | None] = [None]
    distributed.broadcast_object_list(calls, src=0)
    return calls[0]
