"""The preflight in plain words: what gain can be expected at most, and from which context."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcore.analysis.preflight import Diagnosis, measured_as
from sdcore.analysis.teacher_ability import MASKS, mask_of
from sdcore.analysis.verdicts import helps
from sdcore.config import Experiment
from sdcore.contexts import NULL

_PLACES = {"before": "before the first wrong step", "at": "at it", "after": "after it"}

Measured = Mapping[str, Mapping[str, Any]]  # rows of `Diagnosis.measures` of a context, by measure


@dataclass(frozen=True)
class Prospect:
    """A sentence or two about a context, about all of them, or about tokens."""

    about: str
    text: str


def prospects(experiment: Experiment, found: Diagnosis) -> list[Prospect]:
    """Return what can be expected of all contexts, of tokens, and of each context, best first.

    The bound of a context and a mask is the accuracy of their mixed policy minus the student's own:
    see `teacher_ability`. Without it, it is the teacher's accuracy minus the student's.
    """
    measured = {name: _measured(found, name) for name in found.contexts if name != NULL}
    able = {name: rows for name, rows in measured.items() if "gain" in rows}
    if not able:
        zero = " diagnose.teacher_samples is 0." if not experiment.diagnose.teacher_samples else ""
        return [Prospect("all contexts", f"The teacher was not measured.{zero}")]
    order = sorted(able, key=lambda name: -able[name]["gain"]["value"])
    best = next((name for name in order if able[name]["gain"]["low"] > 0), None)
    pairs = _pairs(able)
    chosen = pairs[0][0] if pairs else best or order[0]
    return [
        Prospect(
            "all contexts", _headline_of_masks(able, pairs) if pairs else _headline(able, chosen)
        ),
        *_by_mask(able, pairs, _measured(found, NULL)),
        *_of_conditions(experiment, able),
        *_about_tokens(chosen, able[chosen], _measured(found, NULL)),
        *_about_branches(chosen, able[chosen]),
        _about_beginnings(able, experiment.training.max_first_token_kl),
        *(Prospect(name, _about_context(able[name])) for name in order),
    ]


def _pairs(able: Mapping[str, Measured]) -> list[tuple[str, str]]:
    """Contexts and masks whose bound is measured: those that help first, then by the bound."""
    pairs = [(name, mask) for mask in MASKS for name in able if f"added_{mask}" in able[name]]
    return sorted(
        pairs,
        key=lambda pair: (
            not helps(able[pair[0]], pair[1]),
            -_bound(able, *pair)["value"],
            -able[pair[0]]["gain"]["value"],
        ),
    )


def _bound(able: Mapping[str, Measured], context: str, mask: str) -> Mapping[str, Any]:
    return able[context][f"gain_{mask}"]


def _headline(able: Mapping[str, Measured], chosen: str) -> str:
    rows = able[chosen]
    if rows["gain"]["low"] > 0:
        said = f"A gain of {_gain(rows, f'from {chosen}')} can be expected at most"
    else:
        said = (
            "No gain is shown: with no context is the model found to be right more often. The "
            f"largest difference is {_gain(rows, f'with {chosen}')}"
        )
    return f"{said}: {_shares(rows)}."


def _headline_of_masks(able: Mapping[str, Measured], pairs: Sequence[tuple[str, str]]) -> str:
    context, mask = pairs[0]
    learnt = f"{_points(_bound(able, context, mask))} with {context}, learning from {_label(mask)}"
    if helps(able[context], mask):
        return f"At most {learnt}: {_shares(able[context])}."
    return (
        "No gain is shown: with no context is the model found to be right more often, "
        f"whichever tokens it writes. The largest difference is {learnt}."
    )


def _by_mask(
    able: Mapping[str, Measured], pairs: Sequence[tuple[str, str]], student: Measured
) -> Iterator[Prospect]:
    """For each mask the bounds of its contexts, and what the student gains there by itself."""
    for mask, each in MASKS.items():
        mine = [(name, able[name]) for name, other in pairs if other == mask]
        if not mine:
            continue
        better = [f"{_points(rows[f'gain_{mask}'])} with {name}" for name, rows in mine
                  if helps(rows, mask)]  # fmt: skip
        said = f"at most {', '.join(better)}" if better else "no gain is shown"
        if 0 < len(better) < len(mine):
            said += f"; {len(mine) - len(better)} of {len(mine)} contexts show none"
        alone = student.get(f"gain_{mask}")
        if alone is not None and mask != "all":
            said += f". The student going on there by itself: {_points(alone)}"
        yield Prospect(f"learning from {each.label}", f"{said}.")


def _of_conditions(experiment: Experiment, able: Mapping[str, Measured]) -> Iterator[Prospect]:
    """The bound of each condition of the file that shows the teacher a context."""
    said = []
    for name, condition in experiment.conditions.items():
        rows = able.get(measured_as(experiment, condition.teacher_context or ""))
        if rows is None:
            continue
        mask = mask_of(condition.tokens)
        if mask is None:
            said.append(f"{name}: no such bound for its tokens ({condition.learns_from})")
        elif f"gain_{mask}" in rows:
            said.append(f"{name}: {_points(rows[f'gain_{mask}'])}")
    if said:
        yield Prospect("conditions of this file", f"At most {'; '.join(said)}.")


def _label(mask: str) -> str:
    return MASKS[mask].label


def _measured(found: Diagnosis, context: str) -> Measured:
    rows = found.measures.filter(context=context).iter_rows(named=True)
    return {row["measure"]: row for row in rows}


def _about_context(rows: Measured) -> str:
    gain = rows["gain"]
    word = "at most" if gain["low"] > 0 else "a loss:" if gain["high"] < 0 else "no gain shown:"
    return f"{word} {_gain(rows)}: {_shares(rows)}"


def _about_beginnings(able: Mapping[str, Measured], bound: float) -> Prospect:
    """Return whether the contexts make the model expect another beginning of the response."""
    kl = {name: rows["first_kl"]["value"] for name, rows in able.items() if "first_kl" in rows}
    refused = f"training.max_first_token_kl is {bound:g}: above it the first step may be refused."
    above = [f"{name} {nats:.2f}" for name, nats in kl.items() if nats > bound]
    if above:
        return Prospect(
            "the first token",
            "With some contexts the model expects another beginning of the response. KL of its "
            f"first token in nats: {', '.join(above)}. {refused}",
        )
    largest = max(kl, key=lambda name: kl[name])
    return Prospect(
        "the first token",
        f"Its KL is at most {kl[largest]:.2f} nats, with {largest}. {refused}",
    )


def _about_tokens(name: str, rows: Measured, student: Measured) -> Iterator[Prospect]:
    """Return the teacher's reactions to the student's error, and the share of the KL there."""
    if "kl_after" in rows:
        yield Prospect(
            "tokens after the error",
            f"{rows['kl_after']['value']:.0%} of the KL of wrong rollouts under {name} lies after "
            "the first wrong step. tokens = until_error leaves these tokens out.",
        )
    if "repeats" in rows and "repeats" in student:
        yield Prospect(
            "after the error",
            f"Continued after its first wrong step, the student's own trace goes on with the wrong "
            f"value in {student['repeats']['value']:.0%}; with {name} in "
            f"{rows['repeats']['value']:.0%}, and with the corrected value, which does not follow "
            f"from what stands before, in {rows['repairs']['value']:.0%}. Right answers: "
            f"{student['continued']['value']:.0%} and {rows['continued']['value']:.0%}.",
        )


def _about_branches(name: str, rows: Measured) -> Iterator[Prospect]:
    """Return how often the teacher's preferred token leads the student to the right answer.

    It names no mask: after the error the teacher hands over results that cannot be derived from
    what stands before. Forcing them helps, training on them harms (see the experiment `tokens`).
    At the error, a share w of wrong rollouts and a difference g make a gain of w g at most.
    """
    shown = {place: rows[f"viable_{place}"] for place in _PLACES if f"viable_{place}" in rows}
    if not shown:
        return
    listed = ", ".join(f"{_points(row)} {_PLACES[place]}" for place, row in shown.items())
    at = shown.get("at")
    gain = "No gain is shown at the first wrong step."
    if at is not None and at["low"] > 0:
        points = 100 * (1 - rows["student"]["value"]) * at["value"]
        gain = f"Learning it at the first wrong step brings about {points:+z.0f} points at most."
    yield Prospect(
        "tokens to learn from",
        f"Where {name} disagrees with a token of a wrong rollout, its preferred token was forced "
        f"and the student went on. Right answers, against a token of its own: {listed}. {gain} "
        "After it a forced token may hand over a result that the student cannot derive.",
    )


def _points(row: Mapping[str, Any]) -> str:
    """Such as "+14 points (+3 to +25)"."""
    value, low, high = (f"{100 * row[end]:+z.0f}" for end in ("value", "low", "high"))
    interval = "" if "nan" in low else f" ({low} to {high})"
    return f"{value} points{interval}".replace("-", "−")


def _shares(rows: Measured) -> str:
    teacher, student = (rows[name]["value"] for name in ("teacher", "student"))
    return f"the model is right in {teacher:.0%} with it in the prompt, in {student:.0%} without"


def _gain(rows: Measured, where: str = "") -> str:
    """Such as "+14 points from reference (−10 to +37)"; no interval where it is unknown."""
    value, low, high = (f"{100 * rows['gain'][end]:+z.0f}" for end in ("value", "low", "high"))
    interval = "" if "nan" in low else f"({low} to {high})"
    return " ".join(filter(None, [value, "points", where, interval])).replace("-", "−")
