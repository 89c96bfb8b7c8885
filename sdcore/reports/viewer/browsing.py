"""What the local viewer asks of the tables: problems, their rollouts, and all about one rollout."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdcore.reports.heatmaps import lines
from sdcore.store.database import Store

Row = dict[str, Any]

ORDERS = {"position": "split, position", "worst": "accuracy, split, position",
          "best": "accuracy DESC, split, position"}  # fmt: skip
_OUTCOMES = {"correct": "r.correct", "wrong": "NOT r.correct", "ill-formed": "NOT r.well_formed"}


def runs(store: Store) -> list[Row]:
    """The experiments of the workspace, newest first."""
    return store.query("SELECT * FROM experiments ORDER BY created_at DESC").to_dicts()


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
) -> list[Row]:  # fmt: skip
    """The problems that match, with the number and accuracy of their rollouts.

    Args:
        store: the workspace's tables.
        run: the experiment's id.
        text: a part of question, reference or id.
        split: train, validation or test.
        condition: whose rollouts count.
        order: one of `ORDERS`.
    """
    found = store.query(
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
    return found.to_dicts()


def problem(store: Store, run: str, problem_id: str) -> Row | None:
    """One problem."""
    found = store.rows("problems", experiment_id=run, problem_id=problem_id).to_dicts()
    return found[0] if found else None


def rollouts(store: Store, run: str, problem_id: str, filters: Mapping[str, str]) -> list[Row]:
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
    found = store.query(
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
    return found.to_dicts()


def rollout(store: Store, run: str, rollout_id: str) -> Row | None:
    """One rollout with its critiques, its context, and its tokens under each context.

    The same trace may have been scored in several conditions, which sample alike in the first
    round; `maps` has it as each of them saw it.
    """
    found = store.rows("rollouts", experiment_id=run, rollout_id=rollout_id).to_dicts()
    if not found:
        return None
    row = found[0]
    alike = ("problem_id", "purpose", "round", "seed", "sample_index", "text")
    same = store.rows("rollouts", experiment_id=run, **{name: row[name] for name in alike})
    ids = [rollout_id, *(each for each in same["rollout_id"] if each != rollout_id)]
    contexts = _of(store, "contexts", ids)
    return row | {
        "critiques": _of(store, "critiques", [rollout_id]),
        "contexts": [each for each in contexts if each["rollout_id"] == rollout_id],
        "maps": _maps(_of(store, "token_signals", ids), contexts, row["text"]),
    }


def _of(store: Store, table: str, rollout_ids: Sequence[str]) -> list[Row]:
    rows = store.query(
        f"SELECT * FROM {table} WHERE rollout_id IN (SELECT unnest($ids))",  # noqa: S608
        {"ids": list(rollout_ids)},
    ).to_dicts()
    return sorted(rows, key=lambda row: rollout_ids.index(row["rollout_id"]))


def _maps(signals: list[Row], contexts: list[Row], text: str) -> list[Row]:
    seen = {(each["rollout_id"], each["context"]): each["text"] for each in contexts}
    scored: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(signals, key=lambda row: row["position"]):
        scored.setdefault((row["rollout_id"], row["context"]), []).append(row)
    return [
        {
            "rollout_id": key[0],
            "condition": tokens[0]["condition"],
            "scored_as": key[1],
            "context": seen.get(key),
            "lines": lines(tokens, text),
        }
        for key, tokens in scored.items()
    ]
