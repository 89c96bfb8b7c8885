"""Single rollouts to look at: tokens by step, coloured by their advantage under each context."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars as pl

from sdcore.store.database import Store

THRESHOLDS = (0.1, 0.25, 0.5, 1.0, 2.0)
_STEP_END = re.compile(r"</step_\d+>\s*")
_VERDICTS = {
    "before": "✓ correct",
    "at": "✗ first wrong step",
    "after": "after the first wrong step",
    "unjudged": "not judged",
    "answer": "answer",
}
_OF_ROLLOUT = ("text", "answer", "correct", "wrong_step", "seed", "sample_index")
_CANDIDATES = """
    WITH first AS (
        SELECT rollout_id, min(step) FILTER (region = 'at') AS wrong_step FROM token_signals
        WHERE experiment_id = $id AND round = 0 GROUP BY rollout_id
    )
    SELECT problem_id, seed, sample_index, text, correct, any_value(answer) AS answer,
           any_value(wrong_step) AS wrong_step, list(rollout_id) AS rollout_ids
    FROM rollouts JOIN first USING (rollout_id)
    WHERE correct = $correct AND purpose = $purpose
    GROUP BY problem_id, seed, sample_index, text, correct
    ORDER BY count(DISTINCT condition) DESC, (any_value(wrong_step) IS NULL) = correct DESC,
             any_value(wrong_step) > 1 DESC, seed, problem_id, sample_index
    LIMIT $count
"""


@dataclass(frozen=True)
class Token:
    """A token with the colour class of its advantage (n5 .. n1, empty, p1 .. p5).

    Tokens that share one character are one Token here: their log-probs add up to the character's.
    `unused`: its weight is 0, so that nothing is learned from it.
    """

    text: str
    level: str
    title: str
    unused: bool = False


@dataclass(frozen=True)
class Line:
    """The tokens of one step, or of the answer; `mean` is their mean advantage as text."""

    region: str
    verdict: str
    mean: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Heatmap:
    """One rollout as a condition, or under a context; `context` is what its self-teacher saw."""

    name: str
    context: str | None
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Example:
    """One trace of the untrained policy as every condition, or context, scored it.

    `critique` is a row of `critiques`, a valid one if there is any, or None.
    """

    question: str
    reference: str
    text: str
    answer: str | None
    correct: bool
    wrong_step: int | None
    seed: int
    sample_index: int
    critique: dict[str, Any] | None
    maps: tuple[Heatmap, ...]


def examples(
    store: Store, experiment_id: str, conditions: Sequence[str], *, correct: bool, count: int
) -> list[Example]:
    """Traces of the first round, those first that most conditions scored.

    In the first round all conditions sample from the same weights with the same random numbers, so
    the same trace can be seen under each of their contexts.
    """
    return _examples(store, experiment_id, "condition", conditions, "train", correct, count)


def frozen_examples(
    store: Store, experiment_id: str, contexts: Sequence[str], *, correct: bool, count: int
) -> list[Example]:
    """Traces of the preflight under each of its contexts; wrong from a later step on first."""
    return _examples(store, experiment_id, "context", contexts, "diagnose", correct, count)


def level(advantage: float) -> str:
    """Colour class: p (confirms) or n (objects) and how many `THRESHOLDS` it reaches."""
    reached = bisect_right(THRESHOLDS, abs(advantage))
    return f"{'p' if advantage > 0 else 'n'}{reached}" if reached else ""


def lines(tokens: Sequence[dict[str, Any]], text: str) -> tuple[Line, ...]:
    """Cut the rows of `token_signals` of one rollout, in order, into the lines of its trace."""
    ends = [match.end() for match in _STEP_END.finditer(text)]
    grouped: dict[int, list[dict[str, Any]]] = {}
    for token in tokens:
        grouped.setdefault(bisect_right(ends, token["start"]), []).append(token)
    return tuple(_line(rows) for rows in grouped.values())


def _examples(
    store: Store,
    experiment_id: str,
    by: str,
    names: Sequence[str],
    purpose: str,
    correct: bool,
    count: int,
) -> list[Example]:
    parameters = {"id": experiment_id, "purpose": purpose, "correct": correct, "count": count}
    found = store.query(_CANDIDATES, parameters)
    return [_example(store, experiment_id, by, names, row) for row in found.to_dicts()]


def _example(
    store: Store, experiment_id: str, by: str, names: Sequence[str], row: dict[str, Any]
) -> Example:
    """The trace of a row of candidates under each name; `by` is the column of the names."""
    problem = store.rows("problems", experiment_id=experiment_id, problem_id=row["problem_id"])
    signals = _of_rollouts(store, "token_signals", row["rollout_ids"]).sort("position")
    contexts = _of_rollouts(store, "contexts", row["rollout_ids"])
    seen = dict(contexts.select(by, "text").iter_rows())
    critiques = _of_rollouts(store, "critiques", row["rollout_ids"])
    critiques = critiques.sort("valid", "critique_id", descending=[True, False])
    scored = [(name, signals.filter(pl.col(by) == name).to_dicts()) for name in names]
    return Example(
        question=problem["question"][0],
        reference=problem["reference"][0],
        critique=critiques.row(0, named=True) if len(critiques) else None,
        maps=tuple(
            Heatmap(name, seen.get(name), lines(tokens, row["text"]))
            for name, tokens in scored
            if tokens
        ),
        **{name: row[name] for name in _OF_ROLLOUT},
    )


def _of_rollouts(store: Store, table: str, rollout_ids: list[str]) -> pl.DataFrame:
    return store.query(
        f"SELECT * FROM {table} WHERE rollout_id IN (SELECT unnest($ids))",  # noqa: S608
        {"ids": rollout_ids},
    )


def _line(tokens: list[dict[str, Any]]) -> Line:
    region = next((t["region"] for t in tokens if t["region"] in _VERDICTS), "other")
    mean = sum(token["advantage"] for token in tokens) / len(tokens)
    # An end token has no text; it shares its start with nothing that has.
    runs = groupby(tokens, key=lambda token: (token["start"], token["token"]))
    shown = tuple(_token(list(shared)) for _, shared in runs)
    return Line(region, _VERDICTS.get(region, ""), _signed(mean), shown)


def _token(shared: list[dict[str, Any]]) -> Token:
    """One token, or the tokens of one character (√ is three bytes) as their sum."""
    sums: dict[str, Any] = {"token": shared[0]["token"]}
    for name in ("advantage", "student_logprob", "teacher_logprob", "kl"):
        values = [token[name] for token in shared]
        sums[name] = None if None in values else sum(values)
    weights = [token["weight"] for token in shared if token["weight"] is not None]
    sums["weight"] = max(weights, default=None)
    unused = sums["weight"] == 0
    return Token(sums["token"], level(sums["advantage"]), _title(sums), unused)


def _title(token: dict[str, Any]) -> str:
    parts = [f"advantage {_signed(token['advantage'])}", f"log p {token['student_logprob']:z.2f}"]
    if token["teacher_logprob"] is not None:
        parts.append(f"with the context {token['teacher_logprob']:z.2f}, KL {token['kl']:.2f}")
    if token["weight"] is not None:
        parts.append(f"weight {token['weight']:.3g}")
    return ", ".join(parts).replace("-", "−")


def _signed(number: float) -> str:
    return f"{number:+z.2f}".replace("-", "−")
