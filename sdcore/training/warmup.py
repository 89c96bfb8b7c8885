"""Well-formed traces for a warm-up: they teach the form of an answer, not how to find it."""

import shutil
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path

import polars as pl

from sdcore.config import SOURCES, ProblemsConfig, PromptsConfig
from sdcore.errors import DataError
from sdcore.models import policies
from sdcore.models.adapters import merged_weights
from sdcore.models.policies import Policy, Tokenizer
from sdcore.models.prompts import neutralise, student_prompt
from sdcore.problems import word_problems
from sdcore.problems.arithmetic import STYLES, draw_problems, solve
from sdcore.registry import import_path
from sdcore.traces import parse_trace, render_trace
from sdcore.training.batches import Example
from sdcore.training.head import unwrap_peft

Trace = tuple[str, str]  # question, and a right and well-formed answer to it
SETTINGS = {".json", ".jinja", ".txt", ".model"}  # files of a model folder beside its weights
SEED = 9973  # of the problems


def traces(problems: ProblemsConfig, train: pl.DataFrame, count: int) -> list[Trace]:
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


def examples(
    prompts: PromptsConfig, tokenizer: Tokenizer, end_id: int, chosen: Iterable[Trace]
) -> list[Example]:
    """Return traces as responses to the student's prompt, each with the end token."""
    made = list[Example]()
    for question, trace in chosen:
        response = tokenizer(neutralise(trace, tokenizer), add_special_tokens=False)["input_ids"]
        prompt = student_prompt(tokenizer, prompts, question)
        made.append(Example(f"warm-up {len(made)}", prompt, [*response, end_id]))
    return made


def save_base(policy: Policy, named: Path, folder: Path) -> None:
    """Write a warmed-up policy as a model folder of its own, whole or not at all.

    Adapters are merged into the weights; tokenizer and settings are those of the named model.
    """
    with policies.replacing(folder) as fresh:
        for path in named.iterdir():
            if path.suffix in SETTINGS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, fresh / path.name)
        policies.write_weights(unwrap_peft(policy), fresh, merged_weights(policy))


def arithmetic_traces(problems: ProblemsConfig) -> Iterator[Trace]:
    """Yield solved problems of no split, without end."""
    family = problems.arithmetic
    styles = list(STYLES)
    for problem in draw_problems(SEED, holdout=False, family=family):
        steps = solve(problem, "left", styles[problem.phrasing])
        yield problem.question, render_trace(steps, str(problem.answer))


def word_problem_traces(problems: ProblemsConfig) -> Iterator[Trace]:
    """Yield solved word problems of no split, of the train split's stories, without end."""
    of = None
    if problems.split_by == "template":
        shares = problems.test_share, problems.validation_share
        of = word_problems.split_stories(problems.seed, *shares)["train"]
    family, wordings = problems.word_problems, cycle(word_problems.WORDINGS)
    drawn = word_problems.draw_problems(SEED, holdout=False, family=family, of=of)
    for problem, wording in zip(drawn, wordings, strict=False):
        steps = word_problems.solve(problem, wording)
        yield problem.question, render_trace(steps, word_problems.as_text(problem.answer))


def _cut(train: pl.DataFrame) -> Iterator[Trace]:
    columns = train.sort("position").select("question", "solution", "reference")
    for question, solution, reference in columns.iter_rows():
        steps = [line.strip() for line in (solution or "").splitlines() if line.strip()]
        trace = render_trace(steps, reference)
        if parse_trace(trace).well_formed:
            yield question, trace
