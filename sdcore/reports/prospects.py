"""The preflight in plain words: what gain can be expected at most, and from which context."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdcore.analysis.preflight import Diagnosis
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

    A student that learns from its teacher is not expected to become better than it, so the bound
    is the teacher's accuracy minus the student's own.
    """
    measured = {name: _measured(found, name) for name in found.contexts if name != NULL}
    able = {name: rows for name, rows in measured.items() if "gain" in rows}
    if not able:
        zero = " diagnose.teacher_samples is 0." if not experiment.diagnose.teacher_samples else ""
        return [Prospect("all contexts", f"The teacher was not measured.{zero}")]
    order = sorted(able, key=lambda name: -able[name]["gain"]["value"])
    best = next((name for name in order if able[name]["gain"]["low"] > 0), None)
    chosen = best or order[0]
    headline = (
        f"A gain of {_gain(able[chosen], f'from {chosen}')} can be expected at most"
        if best
        else "No gain can be expected: no context is shown to make the model right more often. The "
        f"largest difference is {_gain(able[chosen], f'with {chosen}')}"
    )
    return [
        Prospect("all contexts", f"{headline}: {_shares(able[chosen])}."),
        *_about_tokens(chosen, able[chosen], _measured(found, NULL)),
        *_about_branches(chosen, able[chosen]),
        _about_beginnings(able, experiment.training.max_first_token_kl),
        *(Prospect(name, _about_context(able[name])) for name in order),
    ]


def _measured(found: Diagnosis, context: str) -> Measured:
    rows = found.measures.filter(context=context).iter_rows(named=True)
    return {row["measure"]: row for row in rows}


def _about_context(rows: Measured) -> str:
    gain = rows["gain"]
    word = "at most" if gain["low"] > 0 else "a loss:" if gain["high"] < 0 else "no gain shown:"
    return f"{word} {_gain(rows)}: {_shares(rows)}"


def _about_beginnings(able: Mapping[str, Measured], bound: float) -> Prospect:
    """Whether the contexts make the model expect another beginning of the response."""
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
    """What the teacher does after the student's error, and how much of the KL lies there."""
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
    """Where the teacher's preferred token leads the student to the right answer.

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
        gain = f"Learning it at the first wrong step brings about {points:+.0f} points at most."
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
