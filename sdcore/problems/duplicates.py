"""Find questions that say nearly the same, by the runs of words that they share."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil

SHORT, LONG = 5, 8  # words in a run
MOST = 50  # earlier questions that are compared for one run of words

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+")


def normalised(text: str) -> str:
    """Return a text without differences of white space, capitals and composed characters."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def near_duplicates(problems: Iterable[tuple[str, str]], bound: float) -> dict[int, int]:
    """Find problems that repeat an earlier one in nearly the same words.

    Such problems have the same answer and the same numbers (a template with other numbers is
    another problem), and the Jaccard similarity of their runs of five words reaches `bound`.

    Args:
        problems: question and answer of each problem.
        bound: 0 to 1; above 1 nothing is a near-duplicate.

    Returns:
        Index of each near-duplicate, and of the earlier problem that it repeats.
    """
    seen: dict[object, list[int]] = defaultdict(list)
    runs: list[frozenset[str]] = []
    repeats: dict[int, int] = {}
    for index, (question, answer) in enumerate(problems):
        runs.append(word_runs(question, SHORT))
        alike = (answer, *sorted(_NUMBER.findall(question)))
        places = [seen[alike, run] for run in runs[index]]
        earlier = sorted({other for place in places for other in place})
        same = (other for other in earlier if _jaccard(runs[index], runs[other]) >= bound)
        if (other := next(same, None)) is not None:
            repeats[index] = other
            continue
        for place in places:
            if len(place) < MOST:
                place.append(index)
    return repeats


def overlapping(texts: Sequence[str], others: Sequence[str], bound: float) -> dict[int, int]:
    """Find texts that share at least `bound` of their runs of eight words with another text.

    PaLM's measure (arXiv 2204.02311), which counts 0.7 as contaminated. A text of n runs that
    shares k of them shares at least one of its n - k + 1 rarest. Only texts with one of these are
    compared, so that what all questions of a template have in common costs nothing (prefix
    filtering, Chaudhuri et al., ICDE 2006).

    Args:
        texts: each is looked for in the others.
        others: the texts that none may repeat.
        bound: above 0; above 1 nothing is found.

    Returns:
        Index of each such text, and index in `others` of one that it shares so much with.
    """
    numbers: dict[str, int] = {}
    runs_of = [
        [numbers.setdefault(run, len(numbers)) for run in word_runs(other, LONG)]
        for other in others
    ]
    holders: list[list[int]] = [[] for _ in numbers]
    for place, runs in enumerate(runs_of):
        for run in runs:
            holders[run].append(place)
    contaminated: dict[int, int] = {}
    for index, text in enumerate(texts):
        own = word_runs(text, LONG)
        needed = max(1, ceil(bound * len(own)))
        known = {numbers[run] for run in own if run in numbers}
        spare = len(known) - needed  # so many of the known runs may be missing in the other text
        rarest = sorted(known, key=lambda run: (len(holders[run]), run))[: max(0, spare + 1)]
        compared = set[int]()
        for place in (place for run in rarest for place in holders[run]):
            if place not in compared and len(known.intersection(runs_of[place])) >= needed:
                contaminated[index] = place
                break
            compared.add(place)
    return contaminated


def word_runs(text: str, length: int) -> frozenset[str]:
    """Return all runs of `length` words; a shorter text, or one without words, is one run."""
    words = _WORD.findall(text.casefold()) or [text]
    count = max(1, len(words) - length + 1)
    return frozenset(" ".join(words[start : start + length]) for start in range(count))


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)
