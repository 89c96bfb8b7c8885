"""Lengths of prompts and responses in tokens: counted where that is possible, else assumed."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from sdcore.config import SOURCES, Experiment
from sdcore.jinja_sandbox import render
from sdcore.registry import import_path

SAMPLE = 64  # problems that are looked at
TURN = 4  # tokens of the chat template per message, assumed
QUESTION = 150  # tokens, assumed where the problems are not at hand
LETTERS = 6  # of a word per token, assumed where the tokenizer is not at hand
LONGEST = 1.5  # longest over mean response of a generated family: 57 over 37.7 in the quickstart
_PIECES = re.compile(r" ?([^\W\d_]+)|\d| ?[^\w\s]+|_|\s+")  # words, digits, runs of signs
_LOCAL = {"jsonl", "csv", "parquet", "duckdb"}


class Worked(NamedTuple):
    """A question, and a trace or solution of it; None where the source has none."""

    question: str
    trace: str | None


@dataclass(frozen=True)
class Lengths:
    """Mean tokens per rollout.

    Attributes:
        prompt: of the student.
        shown: of the teacher's prompt; a context is about as long as a trace or a solution.
        response: mean.
        longest: response.
        basis: how they are known.
    """

    prompt: float
    shown: float
    response: float
    longest: float
    basis: str


def lengths_of(experiment: Experiment, folder: Path | None, response: float | None) -> Lengths:
    """Return the lengths of an experiment's prompts and responses.

    Args:
        experiment: the settings.
        folder: of the model, whose tokenizer counts; None if it is not on this machine.
        response: mean tokens of a response, if the user knows better.
    """
    count, most = _counter(folder), float(experiment.sampling.max_new_tokens)
    worked = list(islice(_worked(experiment), SAMPLE))
    traces = [count(each.trace) for each in worked if each.trace]
    solution = mean(traces) if traces else None
    generated = SOURCES[experiment.problems.source].traces is not None and bool(traces)
    asked = mean(count(each.question) for each in worked) if worked else QUESTION
    if response is not None:
        expected, basis = min(response, most), f"{response:g} tokens per response, as given"
    elif generated and solution is not None:
        expected = min(solution, most)
        basis = f"responses as long as {len(traces)} worked problems: {expected:.0f} tokens"
    else:
        expected = most
        basis = f"responses as long as allowed: {most:.0f} tokens (--response-tokens for fewer)"
    prompts = experiment.prompts
    student = count(render(prompts.student, question="")) + asked + TURN
    if prompts.system:
        student += count(prompts.system) + TURN
    student += prompts.examples * 2 * (asked + TURN + (solution or expected))
    context = solution if solution is not None else expected
    given = render(prompts.teacher, student="", question="", context="")
    shown = student + count(given) + context
    longest = min(most, LONGEST * expected) if generated and response is None else most
    return Lengths(student, shown, expected, longest, basis)


def _worked(experiment: Experiment) -> Iterator[Worked]:
    """Problems of the source, if reading them needs no network and no code of the user's."""
    problems = experiment.problems
    if own := SOURCES[problems.source].traces:
        yield from (Worked(each.question, each.trace) for each in import_path(own)(problems))
    elif problems.source in _LOCAL and problems.path is not None and problems.path.is_file():
        from sdcore.problems.sources import read_records  # noqa: PLC0415 - half a second

        for _, record in read_records(problems):
            if not isinstance(record, str):
                question, trace = record.get(problems.question), record.get(problems.solution)
                yield Worked(str(question or ""), None if trace is None else str(trace))


def approximate_tokens(text: str) -> float:
    """Return about how many tokens a byte-pair tokenizer that splits digits makes of a text.

    Within 6 % of SmolLM2's on worked arithmetic, problems in words, LaTeX and prose, where a number
    of characters per token is wrong by up to half: steps in digits and tags have two, prose four.
    """
    words = [match[1] for match in _PIECES.finditer(text)]
    return sum(max(1, len(word) / LETTERS) if word else 1 for word in words)


def _counter(folder: Path | None) -> Callable[[str], float]:
    """Return a function that counts the tokens of a text."""
    path = None if folder is None else folder / "tokenizer.json"
    if path is None or not path.is_file():
        return approximate_tokens
    from tokenizers import Tokenizer  # noqa: PLC0415 - needed here only

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
