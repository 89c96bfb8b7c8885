"""Find questions that say nearly the same, by the runs of words that they share."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

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

    PaLM's measure (arXiv 2204.02311), which counts 0.7 as contaminated.

    Returns:
        Index of each such text, and index in `others` of the text that it shares most with.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    for place, other in enumerate(others):
        for run in word_runs(other, LONG):
            holders[run].append(place)
    contaminated: dict[int, int] = {}
    for index, text in enumerate(texts):
        runs = word_runs(text, LONG)
        shared = Counter(place for run in runs for place in holders.get(run, ()))
        place, count = min(shared.items(), key=lambda share: (-share[1], share[0]), default=(0, 0))
        if count >= bound * len(runs):
            contaminated[index] = place
    return contaminated


def word_runs(text: str, length: int) -> frozenset[str]:
    """Return all runs of `length` words; a shorter text, or one without words, is one run."""
    words = _WORD.findall(text.casefold()) or [text]
    count = max(1, len(words) - length + 1)
    return frozenset(" ".join(words[start : start + length]) for start in range(count))


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)
