"""The commands of test_crew.py under torchrun: rank 0 counts, and rank 1 counts with it."""

import faulthandler
import sys
from datetime import timedelta
from functools import partial

import torch
from torch import distributed

from sdcore.distributed import controller
from sdcore.errors import TrainingError


class Counter:
    """Add a number times a weight, plus rank 1's double of it."""

    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, number: int, *, weight: int = 1) -> int:
        if number < 0:
            raise TrainingError("less than nothing")
        part = torch.tensor(number * weight * (1 + distributed.get_rank()))
        distributed.all_reduce(part)
        self.total += int(part)
        return self.total

    def stumble(self) -> int:
        """Fail on rank 1 alone, while rank 0 waits for its part."""
        if distributed.get_rank() == 1:
            raise TrainingError("rank 1 alone")
        return self.add(1)


def count() -> None:
    """Only rank 0 gets here."""
    counter = controller.shared(partial(Counter, 1))
    print(counter.add(2))  # 1 + 2 + 4
    try:
        counter.add(-1)
    except TrainingError as error:
        print(error)
    print(counter.add(1), counter.total)  # + 1 + 2
    print(counter.add(number=1, weight=5))  # + 5 + 10
    print(controller.shared(partial(Counter, 100)).add(1))
    raise TrainingError("the end")


def fail_apart() -> None:
    """Only rank 0 gets here, and never to the end."""
    print(controller.shared(partial(Counter, 1)).stumble())


if __name__ == "__main__":
    faulthandler.dump_traceback_later(120, exit=True)  # a hang ends, and says where it was
    torch.set_num_threads(1)
    controller.AGREEMENT = timedelta(seconds=3)
    if "apart" in sys.argv:
        controller.lead(fail_apart)
    try:
        controller.lead(count)
    except TrainingError as error:
        print(error)
