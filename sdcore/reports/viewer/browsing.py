"""Queries of the local viewer: problems, their rollouts, and all about one rollout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from sdcore.reports.heatmaps import Line, lines
from sdcore.store.database import Store

ORDERS = {"position": "split, position", "worst": "accuracy, split, position",
          "best": "accuracy DESC, split, position"}  # fmt: skip
_OUTCOMES = {"correct": "r.correct", "wrong": "NOT r.correct", "ill-formed": "NOT r.well_formed"}


@dataclass(frozen=True)
class TokenMap:
    """The tokens of a trace as one condition or context scored them."""

    rollout_id: str
    condition: str
    scored_as: str
    context: str | None
    lines: Sequence[Line]


@dataclass(frozen=True)
class Details:
    """All about one rollout; each frame has rows of the table of its name."""

    rollouts: pl.DataFrame
    critiques: pl.DataFrame
    contexts: pl.DataFrame
    maps: Sequence[TokenMap]


def runs(store: Store) -> pl.DataFrame:
    """Rows of `experiments`, newest first."""
    return store.query("SELECT * FROM experiments ORDER BY created_at DESC")


def choices(store: Store, run: str) -> dict[str, list[Any]]:
    """The values that the filters of a run offer."""
    found = store.query(
        "SELECT list(DISTINCT condition ORDER BY condition) AS condition, "
        "list(DISTINCT seed ORDER BY seed) AS seed, "
        "list(DISTINCT purpose ORDER BY purpose) AS purpose, "
        "list(DISTINCT round ORDER BY round) AS round FROM rollouts WHERE experiment_id = ?",
        [run],
    ).row(0, named=True)
    return {name: values or [] for name, values in found.items()}


def problems(
    store: Store, run: str, *, text: str = "", split: str = "", condition: str = "",
    order: str = "position",
) -> pl.DataFrame:  # fmt: skip
    """The problems that match, with the number and accuracy of their rollouts.

    Args:
        store: the workspace's tables.
        run: the experiment's id.
        text: a part of question, reference or id.
        split: train, validation or test.
        condition: whose rollouts count.
        order: one of `ORDERS`.
    """
    return store.query(
        f"""
        WITH tried AS (
            SELECT problem_id, count(*) AS rollouts, avg(correct::INT) AS accuracy FROM rollouts
            WHERE experiment_id = $run AND $condition IN ('', condition) GROUP BY problem_id
        )
        SELECT problem_id, split, position, question, reference, rollouts, accuracy
        FROM problems LEFT JOIN tried USING (problem_id)
        WHERE experiment_id = $run AND $split IN ('', split)
            AND contains(lower(concat_ws(' ', question, reference, problem_id)), lower($text))
        ORDER BY {ORDERS[order]}
        """,  # noqa: S608 - one of three fixed orders
        {"run": run, "text": text, "split": split, "condition": condition},
    )


def rollouts(store: Store, run: str, problem_id: str, filters: Mapping[str, str]) -> pl.DataFrame:
    """The rollouts of a problem that match, with what the critic says of each.

    Args:
        store: the workspace's tables.
        run: the experiment's id.
        problem_id: the problem.
        filters: condition, seed, purpose, round, and outcome (correct, wrong, ill-formed); an
            empty value matches all.
    """
    equals = [name for name in ("condition", "seed", "purpose", "round") if filters.get(name)]
    clauses = [f"r.{name}::VARCHAR = ${name}" for name in equals]
    clauses += [_OUTCOMES[filters["outcome"]]] if filters.get("outcome") in _OUTCOMES else []
    return store.query(
        f"""
        SELECT r.rollout_id, r.condition, r.seed, r.purpose, r.round, r.sample_index, r.answer,
               r.correct, r.grade_reason, r.well_formed, len(r.response_ids) AS tokens,
               c.verdict, c.first_wrong_step, s.rollout_id IS NOT NULL AS scored
        FROM rollouts r LEFT JOIN critiques c USING (rollout_id)
        LEFT JOIN (SELECT DISTINCT rollout_id FROM token_signals WHERE position = 0) s
            USING (rollout_id)
        WHERE {" AND ".join(["r.experiment_id = $run", "r.problem_id = $problem", *clauses])}
        ORDER BY r.condition, r.seed, r.purpose, r.round, r.sample_index
        """,  # noqa: S608 - fixed names; all values are parameters
        {"run": run, "problem": problem_id} | {name: filters[name] for name in equals},
    )


def details(store: Store, run: str, rollout_id: str) -> Details | None:
    """One rollout with its critiques, its contexts, and its tokens under each context.

    The same trace may have been scored in several conditions, which sample alike in the first
    round; `maps` has it as each of them saw it.
    """
    found = store.rows("rollouts", experiment_id=run, rollout_id=rollout_id)
    if not len(found):
        return None
    row = found.row(0, named=True)
    alike = ("problem_id", "purpose", "round", "seed", "sample_index", "text")
    same = store.rows("rollouts", experiment_id=run, **{name: row[name] for name in alike})
    ids = [rollout_id, *(each for each in same["rollout_id"] if each != rollout_id)]
    contexts = _of(store, "contexts", ids)
    return Details(
        found,
        _of(store, "critiques", [rollout_id]),
        contexts.filter(rollout_id=rollout_id),
        list(_maps(_of(store, "token_signals", ids), contexts, row["text"])),
    )


def _of(store: Store, table: str, rollout_ids: Sequence[str]) -> pl.DataFrame:
    return store.query(
        f"SELECT * FROM {table} WHERE rollout_id IN (SELECT unnest($ids)) "  # noqa: S608
        "ORDER BY list_position($ids, rollout_id)",
        {"ids": list(rollout_ids)},
    )


def _maps(signals: pl.DataFrame, contexts: pl.DataFrame, text: str) -> Iterator[TokenMap]:
    columns = contexts.select("rollout_id", "context", "text")
    seen = {(rollout, name): shown for rollout, name, shown in columns.iter_rows()}
    scored = signals.partition_by("rollout_id", "context", maintain_order=True, as_dict=True)
    for (rollout_id, name), tokens in scored.items():
        yield TokenMap(
            rollout_id,
            tokens["condition"][0],
            name,
            seen.get((rollout_id, name)),
            lines(tokens.sort("position").to_dicts(), text),
        )
