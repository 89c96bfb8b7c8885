"""Reads two answers as mathematics and compares them, by math-verify. Runs in bounded workers only.

A few characters can keep a computer algebra system busy for hours or fill the memory; nothing here
guards against it. `sdcore.grading.answers` calls it through `sdcore.grading.bounded`, which does.
"""

import logging
from functools import cache, lru_cache
from typing import Any

import math_verify

_SETTINGS = [math_verify.LatexExtractionConfig()]

# One of each kind that answers have: reading it once fills the caches of the parser and of sympy.
_KINDS = (
    ("0.5", r"\frac{1}{2}"), ("x^2-1", "(x-1)(x+1)"), (r"2\sqrt{2}", r"\sqrt{8}"), ("1/2", "0.5"),
    (r"\{1, 2\}", r"\{2, 1\}"), ("[1,2)", "(1,2]"), (r"50\%", "0.5"), ("x=5", "5"), ("x", "1<x<2"),
    (r"\text{even}", "odd"), ("(1, 2)", "(2, 1)"), ("10 km", "10"), (r"x \in (1,2)", r"\pi"),
    (r"\sin(2x)", r"2\sin x\cos x"), (r"\begin{pmatrix}1&2\end{pmatrix}", "2^{10}"), ("(", "0"),
)  # fmt: skip

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off


def readable(text: str) -> bool:
    """Whether math-verify can read a text as mathematics."""
    return bool(_parsed(text))


def equal(answer: str, reference: str) -> bool:
    """Whether math-verify holds the two to be equal; False where it cannot read one of them."""
    return bool(
        math_verify.verify(
            _parsed(reference), _parsed(answer), timeout_seconds=None, allow_set_relation_comp=True
        )
    )


@cache
def warm_up() -> None:
    """Compare one pair of each kind: a process's first comparisons take up to a second else."""
    for answer, reference in _KINDS:
        equal(answer, reference)


@lru_cache(maxsize=8192)
def _parsed(text: str) -> list[Any]:
    """Sympy expressions, as many as math-verify reads; the whole text is taken for the answer."""
    return list(math_verify.parse(f"${text}$", _SETTINGS, "no_fallback", parsing_timeout=None))
