"""One word for what a context does to a model, from stated thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

Row = Mapping[str, Any]
Word = Literal["localised", "diffuse", "copies", "no signal", "not enough data"]

ENOUGH = 10  # rollouts of a kind
COPIES = 0.5  # copy rate
CHANCE = 0.5  # AUC
DIFFUSE = 0.05  # share of the tokens of correct rollouts

RULES = {
    "not enough data": f"fewer than {ENOUGH} wrong rollouts whose first wrong step is known, or "
    "as few correct ones",
    "copies": f"the copy rate is above {COPIES:.0%}",
    "no signal": f"the AUC is not above {CHANCE:g}, or the mean advantage at the first wrong step "
    "not below 0",
    "diffuse": f"above {DIFFUSE:.0%} of the tokens of correct rollouts are objected to",
    "localised": "none of these",
}
"""The first that applies is the verdict; above or below means that the whole interval is."""


@dataclass(frozen=True)
class Verdict:
    """The word, and why in a sentence."""

    context: str
    word: Word
    why: str


def judge(context: str, measures: pl.DataFrame) -> Verdict:
    """Judge a context by its rows of `localisation.measures`.

    An effect counts where its interval excludes the threshold, so that a small sample says
    "no signal" rather than something wrong.
    """
    found = {row["measure"]: row for row in measures.iter_rows(named=True)}
    word, why = _judged(found)
    return Verdict(context, word, why)


def _judged(found: Mapping[str, Row]) -> tuple[Word, str]:
    wrong, right = (found.get(name, {}).get("rollouts", 0) for name in ("auc", "correct"))
    if min(wrong, right) < ENOUGH:
        return (
            "not enough data",
            f"{wrong} wrong rollouts with a judged error, {right} correct ones",
        )
    copied, auc, negative = found.get("copied"), found["auc"], found["negative_share"]
    if copied is not None and copied["low"] > COPIES:
        return "copies", f"it makes {copied['value']:.0%} of the errors likelier"
    if not (auc["low"] > CHANCE and found["at"]["high"] < 0):
        return "no signal", f"it does not object to the wrong step before others ({_auc(auc)})"
    share = f"{negative['value']:.1%} of the tokens of correct rollouts"
    if negative["low"] > DIFFUSE:
        return "diffuse", f"it finds the wrong step ({_auc(auc)}), but objects to {share} too"
    return "localised", f"it finds the wrong step ({_auc(auc)}) and objects to {share}"


def _auc(row: Row) -> str:
    return f"AUC {row['value']:.2f}, {row['low']:.2f} to {row['high']:.2f}"
