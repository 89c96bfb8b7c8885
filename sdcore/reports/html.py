"""What the HTML pages share: how a template is filled, and how a number with its interval is told.

A page loads nothing and runs no script; all that comes from tables is escaped.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdcore.reports.heatmaps import THRESHOLDS

_PAGES = Environment(
    loader=PackageLoader("sdcore.reports"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


_CLASSES = [(f"{sign}{i}", f"{mark}{bound:g}") for sign, mark in (("n", "−"), ("p", "+"))
            for i, bound in enumerate(THRESHOLDS, 1)]  # fmt: skip
LEGEND = (*reversed(_CLASSES[: len(THRESHOLDS)]), ("", "0"), *_CLASSES[len(THRESHOLDS) :])
"""The colour classes of `heatmaps.level` with their bounds, from objecting to confirming."""


def render_page(template: str, **values: object) -> str:
    """Fill one of the package's page templates; the legend of the token colours comes with it."""
    return _PAGES.get_template(template).render(legend=LEGEND, **values)


def cell(numbers: Sequence[float], form: str, to: str) -> dict[str, Any]:
    """A value and its interval as text; an interval that is not known is left out."""
    value, low, high = (f"{number:{form}}".replace("-", "−") for number in numbers)
    return {"value": value, "interval": "" if "nan" in low + high else f"{low}{to}{high}"}
