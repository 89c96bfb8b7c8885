"""Well-formed traces for a warm-up: they teach the form of an answer, not how to find it.

Some may stand after a context, and half of those slip once: so a model learns to use a context and
to judge traces that are not its own best ones, without learning errors. The recipe is that of the
tiny solver's pre-training, `sdcore.tiny_solver.corpus`.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch

from sdcore.config import SOURCES, ProblemsConfig, PromptsConfig
from sdcore.errors import DataError, TrainingError
from sdcore.models import sealed, weight_files
from sdcore.models.folders import copy_settings
from sdcore.models.policies import Policy, Tokenizer
from sdcore.models.prompts import neutralise, student_prompt, teacher_prompt
from sdcore.problems import word_problems
from sdcore.problems.arithmetic import STYLES, draw_problems, reference_solution, solve
from sdcore.problems.slipped import slipped
from sdcore.registry import import_path
from sdcore.traces import Span, parse_trace, render_trace, response_text, token_offsets
from sdcore.training.batches import Example
from sdcore.training.head import unwrap_peft

SEED = 9973  # of the problems


class Solved(NamedTuple):
    """A question, a right and well-formed trace, and the reference solution if there is one."""

    question: str
    trace: str
    solution: str | None


def traces(problems: ProblemsConfig, train: pl.DataFrame, count: int) -> list[Solved]:
    """Return at most `count` right traces to learn the form from; the same settings give the same.

    Those of a generated family are on problems of no split, in its own order and wordings; others
    are the reference solutions of the train split, one step per line.

    Args:
        problems: where the experiment's problems come from.
        train: rows of the table `problems`.
        count: traces wanted.

    Raises:
        DataError: no reference solution can be cut into steps.
    """
    own = SOURCES[problems.source].traces
    made = _cut(train) if own is None else import_path(own)(problems)
    found = list(islice(made, count))
    if not found:
        raise DataError(
            "no traces to warm up on",
            got=f"{len(train)} train problems, none with a solution that can be cut into steps",
            expected="reference solutions with one step per line",
            fix="leave out the section warmup, or name the column problems.solution",
        )
    return found


@dataclass(frozen=True)
class Lesson:
    """One thing to learn.

    Attributes:
        question: the problem.
        trace: the response to learn.
        hint: the context before it; None for the student's own prompt.
        hidden: characters of the trace that are in no loss, the wrong result of a slip.
    """

    question: str
    trace: str
    hint: str | None = None
    hidden: Span | None = None


def lessons(chosen: Sequence[Solved], hinted: float, seed: int) -> list[Lesson]:
    """Return the traces in order, a share of them after a context, half of which slip once.

    The context is the right trace or the reference solution, each as likely where there is one. A
    trace of which no result can be changed and carried on does not slip.

    Args:
        chosen: right traces.
        hinted: share of the traces with a context.
        seed: of the choices; the same seed gives the same lessons.
    """
    rng = random.Random(f"hinted {seed}")  # noqa: S311
    after = rng.sample(range(len(chosen)), round(hinted * len(chosen)))
    slipping = after[: len(after) // 2]
    made = [Lesson(each.question, each.trace) for each in chosen]
    for index in sorted(after):
        question, trace, solution = chosen[index]
        hint = rng.choice([trace, solution or trace])
        slip = slipped(question, trace, rng) if index in slipping else None
        text, hidden = (trace, None) if slip is None else (slip.trace, slip.wrong)
        made[index] = Lesson(question, text, hint, hidden)
    return made


def examples(
    prompts: PromptsConfig, tokenizer: Tokenizer, end_id: int, chosen: Iterable[Lesson]
) -> list[Example]:
    """Return lessons as responses to the prompt with their context, each with the end token."""
    return [
        _example(f"warm-up {index}", prompts, tokenizer, end_id, lesson)
        for index, lesson in enumerate(chosen)
    ]


def _example(
    name: str, prompts: PromptsConfig, tokenizer: Tokenizer, end_id: int, lesson: Lesson
) -> Example:
    text = neutralise(lesson.trace, tokenizer)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = (
        student_prompt(tokenizer, prompts, lesson.question)
        if lesson.hint is None
        else teacher_prompt(tokenizer, prompts, lesson.question, lesson.hint)
    )
    weights = None if lesson.hidden is None else _weights(tokenizer, ids, text, lesson)
    return Example(name, prompt, [*ids, end_id], token_weights=weights)


def _weights(tokenizer: Tokenizer, ids: list[int], text: str, lesson: Lesson) -> list[float]:
    """Return 0 for tokens that hold a hidden character, 1 for the others and for the end.

    Raises:
        TrainingError: the tokens are not those of the text, so that nothing can be located.
    """
    if response_text(tokenizer, ids) != text:
        raise TrainingError(
            "the tokenizer does not give a trace back as it was",
            got=response_text(tokenizer, ids),
            expected=text,
            fix="leave out warmup.hinted",
        )
    start, end = lesson.hidden or (0, 0)
    moved = len(neutralise(lesson.trace[:start], tokenizer)) - start
    spans = token_offsets(tokenizer, ids)
    hidden = [first < end + moved and last > start + moved for first, last in spans]
    return [*(0.0 if each else 1.0 for each in hidden), 1.0]


def save_base(policy: Policy, trained: dict[str, torch.Tensor], named: Path, folder: Path) -> None:
    """Write a warmed-up policy as a model folder of its own, whole or not at all.

    Tokenizer and settings are those of the named model.

    Args:
        policy: the warmed-up policy.
        trained: its `merged_weights`.
        named: folder of the named model.
        folder: to write.
    """
    with sealed.replacing(folder) as fresh:
        copy_settings(named, fresh)
        weight_files.write(unwrap_peft(policy), fresh, trained)


@torch.no_grad()
def kept_share(
    before: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> float | None:
    """Return the share of an update Δ of weights W that rounding to a type leaves.

    ⟨round(W + Δ) − W, Δ⟩ / ⟨Δ, Δ⟩ over all weights, computed one weight at a time.

    Args:
        before: W, by name.
        trained: W + Δ.
        dtype: the type.

    Returns:
        1 where all of it is left, 0 where nothing is; None if there is no update.
    """
    kept = total = 0.0
    for name, weight in trained.items():
        if weight is not before[name]:
            start = before[name].to(weight.device).double()
            delta = weight.double() - start
            kept += float(((weight.to(dtype).double() - start) * delta).sum())
            total += float(delta.square().sum())
    return kept / total if total else None


def arithmetic_traces(problems: ProblemsConfig) -> Iterator[Solved]:
    """Yield solved problems of no split, without end."""
    family = problems.arithmetic
    styles = list(STYLES)
    for problem in draw_problems(SEED, holdout=False, family=family):
        steps = solve(problem, "left", styles[problem.phrasing])
        trace = render_trace(steps, str(problem.answer))
        yield Solved(problem.question, trace, reference_solution(problem))


def word_problem_traces(problems: ProblemsConfig) -> Iterator[Solved]:
    """Yield solved word problems of no split, of the train split's stories, without end."""
    of = None
    if problems.split_by == "template":
        shares = problems.test_share, problems.validation_share
        of = word_problems.split_stories(problems.seed, *shares)["train"]
    family, wordings = problems.word_problems, cycle(word_problems.WORDINGS)
    drawn = word_problems.draw_problems(SEED, holdout=False, family=family, of=of)
    for problem, wording in zip(drawn, wordings, strict=False):
        steps = word_problems.solve(problem, wording)
        trace = render_trace(steps, word_problems.as_text(problem.answer))
        yield Solved(problem.question, trace, word_problems.reference_solution(problem))


def _cut(train: pl.DataFrame) -> Iterator[Solved]:
    columns = train.sort("position").select("question", "solution", "reference")
    for question, solution, reference in columns.iter_rows():
        steps = [line.strip() for line in (solution or "").splitlines() if line.strip()]
        trace = render_trace(steps, reference)
        if parse_trace(trace).well_formed:
            yield Solved(question, trace, solution)
