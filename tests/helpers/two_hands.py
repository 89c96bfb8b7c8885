"""The command of test_crew.py under torchrun: rank 0 counts, and rank 1 counts with it."""

import faulthandler
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


if __name__ == "__main__":
    faulthandler.dump_traceback_later(120, exit=True)  # a hang ends, and says where it was
    torch.set_num_threads(1)
    try:
        controller.lead(count)
    except TrainingError as error:
        print(error)
