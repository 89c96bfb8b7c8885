"""A rollout as a typed record, with what is known of it; rows of the table `rollouts` and back.

`answer` is the model's, `reference` the truth, here and in every table.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import polars as pl

from sdcore.contexts import ContextInputs, Critique
from sdcore.grading.answers import grade_many
from sdcore.slips import wrong_solution
from sdcore.store.schema import TABLES, content_key


class Record:
    """Base of frozen dataclasses whose fields are columns of a table; more columns are ignored."""

    table: ClassVar[str]

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> list[Self]:
        """Rows of a frame, in order."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return [cls(**row) for row in frame.select(names).iter_rows(named=True)]

    @classmethod
    def to_frame(cls, records: Iterable[Self]) -> pl.DataFrame:
        """Records as rows of their table.

        Raises:
            AttributeError: the record does not have all columns of the table.
        """
        names = list(TABLES[cls.table].dtypes)
        rows = [{name: getattr(record, name) for name in names} for record in records]
        return TABLES[cls.table].frame(rows)


@dataclass(frozen=True, slots=True)
class Rollout(Record):
    """One sampled trace. The fields are the columns of the table; `sdcore tables rollouts`."""

    table: ClassVar[str] = "rollouts"

    experiment_id: str
    condition: str
    seed: int
    rollout_id: str
    policy_id: str
    problem_id: str
    purpose: str
    round: int
    sample_index: int
    sampling_seed: int
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    text: str
    logprobs: Sequence[float]
    finish_reason: str
    answer: str | None
    reward: float
    correct: bool
    grade_details: str | None
    grade_reason: str | None
    well_formed: bool


@dataclass(frozen=True, slots=True)
class Problem(Record):
    """A question with its truth: some columns of the table `problems`."""

    table: ClassVar[str] = "problems"

    problem_id: str
    question: str
    solution: str | None
    reference: str


@dataclass(frozen=True, slots=True)
class JudgedRollout:
    """A rollout, its problem, and its critique where there is one."""

    rollout: Rollout
    problem: Problem
    critique: Critique | None = None

    @property
    def valid(self) -> bool:
        """Return whether there is a critique that may be shown to the teacher."""
        return self.critique is not None and self.critique.valid


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rollouts of the same round that a context may quote."""

    other: JudgedRollout | None  # with a valid critique, of another problem
    sibling: JudgedRollout | None  # correct, of the same problem
    wrong: JudgedRollout | None = None  # with a wrong answer, of the same problem


def judged(
    rollouts: Sequence[Rollout], problems: pl.DataFrame, critiques: Mapping[str, Critique]
) -> list[JudgedRollout]:
    """Rollouts with their problems and critiques, in the same order.

    Args:
        rollouts: of the problems.
        problems: rows of the table `problems`.
        critiques: by rollout id; some rollouts may have none.
    """
    ids = {rollout.problem_id for rollout in rollouts}
    of_these = problems.filter(pl.col("problem_id").is_in(list(ids)))
    known = {problem.problem_id: problem for problem in Problem.from_frame(of_these)}
    return [
        JudgedRollout(rollout, known[rollout.problem_id], critiques.get(rollout.rollout_id))
        for rollout in rollouts
    ]


def neighbours(round_: Sequence[JudgedRollout]) -> list[Neighbours]:
    """For each rollout the nearest ones that follow it and can be quoted, in cyclic order.

    One backward pass over the round written twice, so that each rollout meets all that follow it,
    the beginning of the round last: for A B C the pass sees C B A C B A.
    """
    count = len(round_)
    quoted: list[JudgedRollout] = []  # the nearest with a valid critique, then of another problem
    answered: dict[tuple[str, bool], int] = {}  # place of a problem's nearest right or wrong answer
    found: list[Neighbours] = []
    for place in reversed(range(2 * count)):
        mine = round_[place % count]
        problem_id = mine.rollout.problem_id
        if place < count:
            other = next((q for q in quoted if q.rollout.problem_id != problem_id), None)
            sibling, wrong = (
                None if nearest == place + count else round_[nearest % count]
                for right in (True, False)
                for nearest in [answered.get((problem_id, right), place + count)]
            )
            found.append(Neighbours(other, sibling, wrong))
        if mine.valid:
            quoted = [mine, *(q for q in quoted if q.rollout.problem_id != problem_id)][:2]
        if mine.rollout.correct or mine.rollout.answer is not None:
            answered[problem_id, mine.rollout.correct] = place
    return found[::-1]


def lacking_sources(solutions: pl.Series, group_size: int) -> frozenset[str]:
    """Return the inputs of contexts that some rollouts lack, or all, for want of solutions.

    Args:
        solutions: worked ones of the training problems; some may be missing.
        group_size: rollouts per question. Another one may be the wrong solution.
    """
    missing = solutions.null_count()
    lacking = {
        "solution": missing > 0,
        "wrong_solution": missing > 0 and group_size == 1,
        "other_solution": missing == len(solutions),
    }
    return frozenset(name for name, lacks in lacking.items() if lacks)


def other_solutions(asked: Iterable[Problem], known: Sequence[Problem]) -> dict[str, str]:
    """For each problem the worked solution of another, by problem id; none where there is none.

    Neither question nor answer of the other problem are the same. Where the search through the
    known problems begins is derived from the problem id, so that every condition, seed and round
    shows the same solution.

    Args:
        asked: the problems that are to have one.
        known: the training problems, in order.
    """
    solved = [problem for problem in known if problem.solution is not None]
    unique = {problem.problem_id: problem for problem in asked}
    found = {key: _other_solution(problem, solved) for key, problem in unique.items()}
    return {key: solution for key, solution in found.items() if solution is not None}


def _other_solution(mine: Problem, solved: Sequence[Problem]) -> str | None:
    start = int(content_key(mine.problem_id)[:8], 16)
    for place in range(len(solved)):
        other = solved[(start + place) % len(solved)]
        if " ".join(other.question.split()) == " ".join(mine.question.split()):
            continue
        pair = [other.reference, mine.reference]
        if not any(grade.correct for grade in grade_many(pair, pair[::-1])):
            return other.solution
    return None


def context_inputs(
    mine: JudgedRollout,
    near: Neighbours,
    needs: Collection[str],
    other_solution: str | None = None,
) -> ContextInputs:
    """Inputs of contexts: all that they may show of a rollout.

    Args:
        mine: the rollout.
        near: rollouts of the round that may be quoted.
        needs: inputs that the contexts need. Only if they include the wrong solution is it made:
            the reference solution with one error added. If that is impossible, the nearest wrong
            rollout of the same problem stands in.
        other_solution: worked solution of another problem.
    """
    problem = mine.problem
    wrong = None
    if "wrong_solution" in needs:
        wrong = near.wrong.rollout.text if near.wrong else None
        if problem.solution:
            slipped = wrong_solution(problem.question, problem.solution, problem.reference)
            wrong = slipped or wrong
    return ContextInputs(
        question=problem.question,
        solution=problem.solution,
        reference=problem.reference,
        trace=mine.rollout.text,
        correct=mine.rollout.correct,
        critique=mine.critique,
        other_critique=near.other.critique if near.other else None,
        sibling=near.sibling.rollout.text if near.sibling else None,
        other_solution=other_solution,
        wrong_solution=wrong,
    )
