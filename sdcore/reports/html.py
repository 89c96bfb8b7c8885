"""Shared by the HTML pages: filling a template, and a number with its interval as text.

A page loads nothing and runs no script; everything that comes from tables is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdcore.reports.heatmaps import THRESHOLDS

_PAGES = Environment(
    loader=PackageLoader("sdcore.reports"), autoescape=True, undefined=StrictUndefined,
    extensions=["jinja2.ext.loopcontrols"],
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


_CLASSES = [(f"{sign}{i}", f"{mark}{bound:g}") for sign, mark in (("n", "−"), ("p", "+"))
            for i, bound in enumerate(THRESHOLDS, 1)]  # fmt: skip
LEGEND = (*reversed(_CLASSES[: len(THRESHOLDS)]), ("", "0"), *_CLASSES[len(THRESHOLDS) :])
"""The colour classes of `heatmaps.level` with their bounds, from objecting to confirming."""


def render_page(template: str, **values: object) -> str:
    """Fill one of the package's page templates; the legend of the token colours comes with it."""
    return _PAGES.get_template(template).render(legend=LEGEND, **values)


@dataclass(frozen=True)
class Cell:
    """A value and its interval as text; the interval is empty where it is unknown."""

    value: str
    interval: str


def cell(numbers: Sequence[float], form: str, to: str) -> Cell:
    """Format a value and its bounds."""
    value, low, high = (f"{number:{form}}".replace("-", "−") for number in numbers)
    return Cell(value, "" if "nan" in low + high else f"{low}{to}{high}")
