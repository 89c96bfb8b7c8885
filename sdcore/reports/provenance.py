"""Provenance of a row: the rows that it was made from, and how they differ from others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcore.config import drift
from sdcore.errors import DataError
from sdcore.store.database import Store
from sdcore.store.schema import content_key


@dataclass(frozen=True)
class Kind:
    """Identity of a table's rows within a run, and the inputs of their keys.

    The settings of the run and the rows that a row refers to go into its key as well.
    """

    key: str
    place: tuple[str, ...]
    inputs: tuple[str, ...]


_RUN = ("condition", "seed")
KINDS = {
    "experiments": Kind("experiment_id", (), ("code_version", "libraries")),
    "problems": Kind("problem_id", ("problem_id",), ("question", "reference", "source")),
    "policies": Kind("policy_id", (*_RUN, "round"), ("round", "sha256")),
    "rollouts": Kind(
        "rollout_id",
        (*_RUN, "purpose", "round", "problem_id", "sample_index"),
        ("purpose", "round", "sample_index", "sampling_seed", "prompt_ids"),
    ),
    "critiques": Kind("critique_id", ("rollout_id", "critic"), ("critic", "content_id")),
    "contexts": Kind("context_id", ("rollout_id", "context"), ("context", "teacher_prompt_ids")),
    "teacher_samples": Kind(
        "teacher_sample_id",
        ("rollout_id", "context", "start", "sample_index"),
        ("context", "start", "sample_index", "sampling_seed", "prompt_ids"),
    ),
    "branches": Kind(
        "branch_id",
        ("rollout_id", "context", "position"),
        ("context", "position", "sampling_seed", "forced_id"),
    ),
    "updates": Kind("update_id", (*_RUN, "step"), ("step",)),
    "scores": Kind("score_id", (*_RUN, "round", "split"), ("split", "k")),
}
_REFERENCES = ("critiques", "rollouts", "policies", "problems", "experiments")


@dataclass(frozen=True)
class Ancestor:
    """A row of a lineage and its table."""

    table: str
    row: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The row's key."""
        return str(self.row[KINDS[self.table].key])

    @property
    def inputs(self) -> dict[str, str]:
        """Inputs of the key as text; token ids as their number and a digest."""
        return {name: _text(self.row[name]) for name in KINDS[self.table].inputs}


@dataclass(frozen=True)
class Change:
    """One input that differs, and where: settings, code, libraries, weights, or a table."""

    where: str
    what: str


def lineage(store: Store, table: str, prefix: str) -> list[Ancestor]:
    """The row whose key starts with the prefix and all that it was made from, nearest first.

    Of the policies before the one that was used, only the untrained one is named.

    Raises:
        DataError: the table's rows have no key of their own, or not exactly one key fits.
    """
    found = {table: _find(store, table, prefix)}
    for parent in _REFERENCES:
        key = KINDS[parent].key
        child = next((row for row in found.values() if row.get(key) is not None), None)
        if child is not None and parent not in found:
            run = {"experiment_id": child["experiment_id"], key: child[key]}
            for row in store.rows(parent, **run).to_dicts():
                found[parent] = row
    rows = [Ancestor(name, row) for name, row in found.items()]
    if found.get("policies", {}).get("parent_id") is not None:
        run = {"experiment_id": found["policies"]["experiment_id"], "parent_id": None}
        rows.insert(-1, Ancestor("policies", store.rows("policies", **run).row(0, named=True)))
    return rows


def since(rows: list[Ancestor], now: Mapping[str, Any], weights: str) -> list[Change]:
    """Return what has changed since the rows were made.

    Args:
        rows: a lineage.
        now: the row of `experiments` that the run would get today.
        weights: digest of the untrained model's weights today.
    """
    changes = _run_changes(rows[-1].row, now)
    for ancestor in rows:
        if ancestor.table == "policies" and ancestor.row["parent_id"] is None:
            changes += _drift("weights", {"sha256": ancestor.row["sha256"]}, {"sha256": weights})
    return changes


def against(store: Store, rows: list[Ancestor], run: Mapping[str, Any]) -> list[Change]:
    """Return what differs in the lineage of the row at the same place of another run.

    Args:
        store: the workspace's tables.
        rows: a lineage.
        run: the other run's row of `experiments`.
    """
    changes = _run_changes(rows[-1].row, run)
    rollouts: dict[str, str] = {}  # there, by here
    for ancestor in sorted(rows[:-1], key=lambda each: "rollout_id" in KINDS[each.table].place):
        place = {name: ancestor.row[name] for name in KINDS[ancestor.table].place}
        if "rollout_id" in place:
            place["rollout_id"] = rollouts.get(place["rollout_id"], "")
        there = store.rows(ancestor.table, experiment_id=run["experiment_id"], **place)
        if len(there) != 1:
            changes.append(Change(ancestor.table, f"{len(there)} rows at this place of that run"))
            continue
        other = Ancestor(ancestor.table, there.row(0, named=True))
        changes += _drift(ancestor.table, ancestor.inputs, other.inputs)
        if ancestor.table == "rollouts":
            rollouts[ancestor.key] = other.key
    return changes


def _find(store: Store, table: str, prefix: str) -> Mapping[str, Any]:
    if table not in KINDS:
        raise DataError(
            "not a table whose rows have a key of their own", got=table, expected=", ".join(KINDS),
            fix="for token_signals, ask for their rollout",
        )  # fmt: skip
    key = KINDS[table].key
    found = store.query(
        f"SELECT t.* FROM {table} t JOIN experiments e USING (experiment_id) "  # noqa: S608
        f"WHERE starts_with(t.{key}, ?) ORDER BY e.created_at DESC",
        [prefix],
    )
    keys = found[key].unique(maintain_order=True).to_list()
    if len(keys) != 1:
        raise DataError(
            f"{len(keys) or 'no'} keys start like this", got=prefix, expected="exactly one",
            where=f"{table}.{key}", fix=", ".join(keys[:5]),
        )  # fmt: skip
    return found.row(0, named=True)


def _run_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    changes = _drift("settings", json.loads(before["config"]), json.loads(now["config"]))
    code = "code_version"
    changes += _drift("code", {code: before[code]}, {code: now[code]})
    libraries = (json.loads(row["libraries"]) for row in (before, now))
    return changes + _drift("libraries", *libraries)


def _drift(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    return [Change(where, line) for line in drift(before, now)]


def _text(value: object) -> str:
    return f"{len(value)} ids, {content_key(value)[:8]}" if isinstance(value, list) else str(value)
