"""A run under torchrun: rank 0 runs the pipeline, the other ranks train with it.

There is one object that all ranks have, the trainer. Rank 0 makes it and calls its methods; each
of these orders goes to the other ranks first, which then do the same, in the same order.
"""

import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from sdcore.distributed import collectives
from sdcore.errors import SdcoreError

Made = TypeVar("Made")

PATIENCE = timedelta(days=7)  # that ranks wait while rank 0 samples


def lead(command: Callable[[], None]) -> None:
    """Run a command on rank 0; on the others, do their part until it ends.

    An error that is not one of sdcore's may leave the ranks at different places: then rank 0 ends
    with it, and torchrun ends the others.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(timeout=PATIENCE)
    if collectives.place()[0] > 0:
        _follow()
        return
    try:
        command()
    except (SystemExit, SdcoreError):
        _dismiss()
        raise
    _dismiss()


def shared(make: Callable[[], Made]) -> Made:
    """What `make` gives; under torchrun on every rank, and called on rank 0 it is called on all.

    There is one at a time: where a second is made, the first has had its day. What goes to the
    other ranks, `make` and the arguments of methods, must survive pickling.
    """
    return make() if collectives.place()[1] == 1 else cast(Made, _Shared(make))


class _Shared:
    """Rank 0's side of a shared object."""

    def __init__(self, make: Callable[[], object]) -> None:
        _send((None, (make,)))
        self._own = make()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._own, name)
        if not inspect.ismethod(found):
            return found

        def everywhere(*arguments: object) -> Any:
            _send((name, arguments))
            return found(*arguments)

        return everywhere


def _follow() -> None:
    own: Any = None
    while (order := _received()) is not None:
        name, arguments = order
        with suppress(SdcoreError):  # rank 0 raises it too, and says so
            if name is None:
                own = None  # first, to free its memory
                own = arguments[0]()
            else:
                getattr(own, name)(*arguments)
    distributed.destroy_process_group()


def _dismiss() -> None:
    _send(None)
    distributed.destroy_process_group()


def _send(order: object) -> None:
    distributed.broadcast_object_list([order], src=0)


def _received() -> Any:
    orders = [None]
    distributed.broadcast_object_list(orders, src=0)
    return orders[0]
