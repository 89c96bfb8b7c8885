"""One word for what a context does to a model, from stated thresholds.

Where they come from. The study of deployments/README.md ("Does the preflight predict?": seven
contexts, one small model) supports one:

- *teacher not better*, at a difference of 0: it was set before the study. There any value from -2
  to +58 points divides the four contexts that do harm and one that is not shown to, wrong_hint,
  from the two that gain, also the context that is left out when the cut is made.

For the others the study neither confirms nor contradicts the number:

- CHANCE, and an advantage below 0: what a context without any signal has.
- OBJECTION = -0.1 nats per token before the error, by hand. The study ranks contexts best by this
  measure, and its cut is near, between -0.27 and -0.10; but judged on the context left out it
  errs on 1 of 7, so the number was not taken from it.
- DIFFUSE = 5 % of tokens, by hand, after the paper's "correct steps stay above 0". The study's cut
  is between 4.5 and 7.4 % (1 error of 7, 2 left out): a harmful context objects to few tokens.
- COPIES = 50 %, by hand: most errors. No context of the study reaches it.
- ENOUGH = 10 rollouts, by hand: with fewer an interval over problems says little. Those of too few
  problems (`intervals.FEWEST`) are unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

import polars as pl

from sdcore.analysis.intervals import FEWEST
from sdcore.analysis.teacher_ability import MASKS
from sdcore.store.sql_views import OBJECTION

Row = Mapping[str, Any]
Word = Literal[
    "localised", "diffuse", "copies", "no signal", "not enough data", "teacher not better"
]

ENOUGH = 10  # rollouts of a kind
COPIES = 0.5  # copy rate
CHANCE = 0.5  # AUC
DIFFUSE = 0.05  # share of the tokens of correct rollouts
PLACES = {"error": ("error_auc", "error"), "wrong step": ("auc", "at")}
"""Places of an objection, and the measures that show it: in a step of words one token is wrong
and the others are forced, so that all of them together may hide what the error shows."""

RULES = {
    "teacher not better": f"of at least {ENOUGH} responses with the context the share of "
    "right ones, minus the share without it, is not above 0. Or whichever tokens of wrong rollouts "
    "the teacher writes, it is not above the student's own, or not above that of the student going "
    "on at the same places by itself",
    "not enough data": f"fewer than {ENOUGH} wrong rollouts whose first wrong step is known, or "
    f"as few correct ones, or either of fewer than {FEWEST} problems",
    "copies": f"the copy rate is above {COPIES:.0%}",
    "no signal": f"neither for the error nor for the first wrong step is the AUC above {CHANCE:g} "
    "and the mean advantage below 0",
    "diffuse": f"above {DIFFUSE:.0%} of the tokens of correct rollouts are objected to, or "
    f"the mean advantage before the first wrong step is below {OBJECTION:g}",
    "localised": "none of these",
}
"""The first that applies is the verdict; above or below means that the whole interval is."""


@dataclass(frozen=True)
class Verdict:
    """The word, and why in a sentence.

    Attributes:
        better_at: masks of `teacher_ability.MASKS` under which the teacher is better; None where
            too little was measured to say.
    """

    context: str
    word: Word
    why: str
    better_at: tuple[str, ...] | None = None


def judge(context: str, measures: pl.DataFrame) -> Verdict:
    """Judge a context by its rows of `localisation.measures`.

    An effect counts where its interval excludes the threshold, so that a small sample says
    "no signal" rather than something wrong.
    """
    found = {row["measure"]: row for row in measures.iter_rows(named=True)}
    word, why = _judged(found)
    masks = _measured_masks(found)
    better = tuple(mask for mask in masks if helps(found, mask)) if masks else None
    return Verdict(context, word, why, better)


def helps(found: Mapping[str, Row], mask: str) -> bool:
    """Return whether the teacher is better where it writes a mask's tokens.

    More answers are right than the student's from the question, and than where it goes on at the
    same places by itself: both intervals are above 0.
    """
    return all(found[f"{name}_{mask}"]["low"] > 0 for name in ("gain", "added"))


def _measured_masks(found: Mapping[str, Row]) -> list[str]:
    """Masks with enough responses and with known bounds."""
    return [
        mask
        for mask in MASKS
        if f"added_{mask}" in found
        and found[f"gain_{mask}"]["rollouts"] >= ENOUGH
        and not any(isnan(found[f"{name}_{mask}"]["low"]) for name in ("gain", "added"))
    ]


def _judged(found: Mapping[str, Row]) -> tuple[Word, str]:
    gain = found.get("gain")
    if gain is not None and gain["rollouts"] >= ENOUGH and gain["low"] <= 0:
        return "teacher not better", _not_better(found)
    masks = _measured_masks(found)
    if masks and not any(helps(found, mask) for mask in masks):
        return "teacher not better", _no_mask(found, masks)
    wrong, right = (found.get(name, {}).get("rollouts", 0) for name in ("at", "correct"))
    if min(wrong, right) < ENOUGH:
        return (
            "not enough data",
            f"{wrong} wrong rollouts with a judged error, {right} correct ones",
        )
    if any(isnan(found[name]["low"]) for name in ("at", "negative_share")):
        return "not enough data", f"its rollouts are of fewer than {FEWEST} problems"
    copied, negative = found.get("copied"), found["negative_share"]
    if copied is not None and copied["low"] > COPIES:
        return "copies", f"it makes {copied['value']:.0%} of the errors likelier"
    place = next((place for place, names in PLACES.items() if _objects(found, *names)), None)
    if place is None:
        measured = [_auc(found[auc]) for auc, _ in PLACES.values() if auc in found]
        missed = measured[0] if measured else "its steps have no other tokens"
        return "no signal", f"it does not object to the error before other tokens ({missed})"
    finds = f"it finds the {place} ({_auc(found[PLACES[place][0]])})"
    share = f"objects to {negative['value']:.1%} of the tokens of correct rollouts"
    before = found.get("before")
    if before is not None and before["high"] < OBJECTION:
        return "diffuse", f"{finds}, but objects to correct steps ({before['value']:.2f} nats) too"
    if negative["low"] > DIFFUSE:
        return "diffuse", f"{finds}, but {share} too"
    likelier = f", makes {copied['value']:.0%} of the errors likelier" if copied else ""
    return "localised", f"{finds}{likelier} and {share}"


def _not_better(found: Mapping[str, Row]) -> str:
    gain, teacher, student = (found[name] for name in ("gain", "teacher", "student"))
    shown = "right less often" if gain["high"] < 0 else "not shown to be right more often"
    points = _points(gain).replace(" (", ", ")
    better = [mask for mask in _measured_masks(found) if helps(found, mask)]
    listed = " or ".join(MASKS[mask].label for mask in better)
    return (
        f"with it the model is {shown}: {teacher['value']:.0%}, against {student['value']:.0%} "
        f"without ({points}" + (f", though it is where it writes {listed}" if better else "")
    )


def _no_mask(found: Mapping[str, Row], masks: Sequence[str]) -> str:
    best = max(masks, key=lambda mask: float(found[f"gain_{mask}"]["value"]))
    gain, added = (_points(found[f"{name}_{best}"]) for name in ("gain", "added"))
    return (
        "whichever tokens it writes, no more answers are shown to be right; at most "
        f"{gain} from {MASKS[best].label}, and {added} against the student going on there by itself"
    )


def _points(row: Row) -> str:
    value, low, high = (f"{100 * row[end]:+z.0f}" for end in ("value", "low", "high"))
    return f"{value} points ({low} to {high})".replace("-", "−")


def _objects(found: Mapping[str, Row], auc: str, advantage: str) -> bool:
    """Return whether the objection is there; bounds that are not known support nothing."""
    there = auc in found and advantage in found
    return there and found[auc]["low"] > CHANCE and found[advantage]["high"] < 0


def _auc(row: Row) -> str:
    return f"AUC {row['value']:.2f}, {row['low']:.2f} to {row['high']:.2f}"
