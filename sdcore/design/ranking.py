"""The rules of a search: the preflight's score, the order of candidates, and the decision.

All of them are stated on the page, in `RULES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Word = Literal["confirmed", "not shown", "refuted"]

DIGITS = 6  # to which scores are compared

MEASURES = {
    "teacher": "share of right answers of the model with the context in its prompt",
    "auc": "AUC of −advantage as a detector of the error, or of the first wrong step where no "
    "error was made out",
    "aim": "share of the loss of wrong rollouts, as its tokens are weighted, that lies up to the "
    "end of the first wrong step",
}
"""The measures of the preflight that a score is made of; each is between 0 and 1."""

RULES = {
    "Score of the preflight": "the mean of three shares: teacher, AUC and aim. One that could not "
    "be measured counts as 0. The preflight measures the forward KL, so other divergences tie.",
    "Score of a short run": "avg@k on the validation problems at the rung's last round, the mean "
    "over the seeds. The learning rate follows the schedule of the last rung, so that earlier "
    "rungs are looked at in the middle of it.",
    "Ties": f"scores that agree in {DIGITS} digits. The candidate that was ahead before stays "
    "ahead: in the earlier rung, in the preflight, and at last in the list, which the file's own "
    "conditions lead.",
    "Missing scores": "a candidate that trained nothing with one of the seeds, or was stopped for "
    "its health, is dropped.",
    "Winner": "the best of the last rung. It was chosen by its score, which is too high on "
    "average; the confirmation has other seeds and other problems.",
    "Confirmation": "confirmed if the whole interval of the paired difference is above 0, refuted "
    "if it is below, else not shown. A confirmation with a seed that trained nothing or was "
    "stopped shows nothing. If the file's own condition has won, nothing is confirmed.",
}


def preflight_parts(measured: Mapping[str, float], aim: float | None) -> dict[str, float | None]:
    """Return the three measures of a score; None where one could not be measured.

    Args:
        measured: of the context, by measure of the preflight.
        aim: of the condition.
    """
    auc = measured.get("error_auc", measured.get("auc"))
    return {"teacher": measured.get("teacher"), "auc": auc, "aim": aim}


def preflight_score(parts: Mapping[str, float | None]) -> float:
    """Return the mean of the three measures; one that is missing counts as 0."""
    return sum(value or 0.0 for value in parts.values()) / len(MEASURES)


def ranked(scores: Mapping[str, float | None], before: Sequence[str]) -> list[str]:
    """Return the candidates, best first; without a score last, ties in the order of `before`.

    Scores are equal where they agree in six digits: the same sum in another order does.
    """

    def place(name: str) -> tuple[bool, float]:
        score = _rounded(scores[name])
        return score is None, -(score or 0.0)

    return sorted(before, key=place)  # stable


@dataclass(frozen=True)
class Fate:
    """The result of a candidate at a rung, and the reason."""

    name: str
    rank: int  # from 1
    word: Literal["kept", "dropped"]
    reason: str


def fates(
    scores: Mapping[str, float | None],
    before: Sequence[str],
    keeps: int,
    missing: Mapping[str, str] | None = None,
) -> list[Fate]:
    """Return the fates of the candidates of a rung, best first.

    Args:
        scores: of the candidates; None where there is none.
        before: the candidates in the order in which they came.
        keeps: how many stay, at most.
        missing: why a candidate has no score.
    """
    order, found = ranked(scores, before), list[Fate]()
    places = [_rounded(scores[name]) for name in order]
    at_cut = {*places[keeps - 1 : keeps]} & {*places[keeps : keeps + 1]}  # equal on both sides
    for rank, (name, score) in enumerate(zip(order, places, strict=True), 1):
        if score is None:
            found.append(Fate(name, rank, "dropped", (missing or {}).get(name, "no score")))
            continue
        tied = "; tied at the cut" if score in at_cut else ""
        reason = f"place {rank} of {len(order)}, cut after {keeps}{tied}"
        found.append(Fate(name, rank, "kept" if rank <= keeps else "dropped", reason))
    return found


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, DIGITS)


def decision(low: float, high: float) -> Word:
    """Return the word for a paired difference, winner minus baseline, by its interval.

    Bounds that are unknown (NaN) show nothing.
    """
    if low > 0:
        return "confirmed"
    return "refuted" if high < 0 else "not shown"


def shared(total: int, sharers: int) -> list[int]:
    """Divide tokens among those who share them, as equally as whole numbers allow."""
    return [total // sharers + (place < total % sharers) for place in range(sharers)]
