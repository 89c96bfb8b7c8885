"""Rollouts of a round on their way from the stage that samples them to the one that aligns them."""

from collections.abc import Iterable, Iterator
from threading import Condition

from sdcore.rollouts import Rollout


class Arrivals:
    """Rollouts that one thread adds in any order, and another one takes question by question.

    The taker may be tried again: each iteration begins with the first question.

    Args:
        size: rollouts per question.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._of: dict[str, dict[str, Rollout]] = {}  # by problem and rollout id
        self._whole: list[Rollout] = []  # of questions that have all of theirs
        self._over, self._changed = False, Condition()

    @property
    def rollouts(self) -> list[Rollout]:
        """All that have been added."""
        return [rollout for group in self._of.values() for rollout in group.values()]

    def add(self, rollouts: Iterable[Rollout]) -> None:
        """Pass on rollouts; one that is known stays as it is."""
        with self._changed:
            for rollout in rollouts:
                group = self._of.setdefault(rollout.problem_id, {})
                if rollout.rollout_id in group:
                    continue
                group[rollout.rollout_id] = rollout
                if len(group) == self._size:  # in one order, whichever was finished first
                    self._whole += sorted(group.values(), key=lambda each: each.sample_index)
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no more will come, whether all are there or not."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[list[Rollout]]:
        """Wait for whole questions, and yield the rollouts of those that have come since."""
        taken = 0
        while fresh := self._after(taken):
            taken += len(fresh)
            yield fresh

    def _after(self, taken: int) -> list[Rollout]:
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._whole) > taken)
            return self._whole[taken:]
