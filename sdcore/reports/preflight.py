"""The preflight's findings as text tables and as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sdcore.analysis import teacher_ability, viability
from sdcore.analysis.localisation import MEASURES
from sdcore.analysis.power import AGREEMENT, POWER, Detectable
from sdcore.analysis.preflight import Diagnosis
from sdcore.analysis.teacher_ability import OWN_PROMPT
from sdcore.analysis.verdicts import RULES
from sdcore.config import Experiment, PromptsConfig
from sdcore.contexts import NULL
from sdcore.reports import heatmaps, plots
from sdcore.reports.html import Cell, cell, render_page
from sdcore.reports.prospects import prospects
from sdcore.store.database import Store

Shown = Mapping[str, tuple[str, str, float]]  # measure: heading, form of its numbers, scale

_WHERE: Shown = {
    "auc": ("AUC", ".2f", 1),
    "error_auc": ("AUC, error", ".2f", 1),
    "before": ("before", "+z.2f", 1),
    "at": ("first wrong step", "+z.2f", 1),
    "after": ("after", "+z.2f", 1),
    "error": ("error", "+z.2f", 1),
    "copied": ("copy rate, %", ".0f", 100),
    "correct": ("correct rollouts", "+z.3f", 1),
    "negative_share": ("diffusion, %", ".1f", 100),
}
_MORE: Shown = {
    "error_student": ("p(error)", ".2f", 1),
    "error_teacher": ("p(error | context)", ".2f", 1),
    "kl": ("KL", ".3f", 1),
    "first_kl": ("first-token KL", ".3f", 1),
}
_ABLE: Shown = {
    "teacher": ("right", ".0f", 100),
    "student": ("without", ".0f", 100),
    "gain": ("difference", "+z.0f", 100),
    "helped": ("right, wrong rollouts", ".0f", 100),
    "continued": ("right after the error", ".0f", 100),
    "repeats": ("repeats it", ".0f", 100),
    "repairs": ("repairs it", ".0f", 100),
    "ignores": ("ignores it", ".0f", 100),
    "kl_after": ("KL after the error", ".0f", 100),
}
_GAINS: Shown = {
    f"gain_{name}": (f"gain, {mask.label}", "+z.0f", 100)
    for name, mask in teacher_ability.MASKS.items()
}
_ADDED: Shown = {
    f"added_{name}": (f"added, {mask.label}", "+z.0f", 100)
    for name, mask in teacher_ability.MASKS.items()
}
_VIABLE: Shown = {
    "viable": ("right if forced", ".0f", 100),
    "resampled": ("right if resampled", ".0f", 100),
    "viable_gain": ("difference, forced", "+z.0f", 100),
    "viable_before": ("before the error", "+z.0f", 100),
    "viable_at": ("at the error", "+z.0f", 100),
    "viable_after": ("after the error", "+z.0f", 100),
    "viable_auc_advantage": ("AUC, advantage", ".2f", 1),
    "viable_auc_kl": ("AUC, KL", ".2f", 1),
    "viable_auc_entropy": ("AUC, entropy", ".2f", 1),
}
_GAPS: Shown = {
    "auc": ("AUC", "+z.2f", 1),
    "error_auc": ("AUC, error", "+z.2f", 1),
    "before": ("before", "+z.2f", 1),
    "at": ("first wrong step", "+z.2f", 1),
    "error": ("error", "+z.2f", 1),
    "negative_share": ("diffusion, points", "+z.1f", 100),
}


@dataclass(frozen=True)
class Grid:
    """A table of values with intervals: one row per context, one column per measure."""

    title: str
    headings: tuple[str, ...]
    rows: dict[str, list[Cell | None]]

    def text(self) -> pl.DataFrame:
        """The table as text, each interval in brackets."""
        cells = [
            {"context": context} | dict(zip(self.headings, map(_text, row), strict=True))
            for context, row in self.rows.items()
        ]
        return pl.DataFrame(cells)


def grids(found: Diagnosis) -> list[Grid]:
    """Return the measures of each context, and paired differences where there is a baseline."""
    measures = found.measures.filter(pl.col("context") != NULL)
    gaps = f"Paired difference: {found.baseline} minus the context"
    tables = [
        _grid("What the teacher can do, %", found.measures, _ABLE, found),
        _grid("Gain at most, by the tokens to learn from, points", found.measures, _GAINS, found),
        _grid("Of it, more than the student going on by itself, points", measures, _ADDED, found),
        _grid("What the teacher's preferred token leads to, %", measures, _VIABLE, found),
        _grid("Where the advantage lies, nats per token", measures, _WHERE, found),
        _grid("How far the context moves the model", measures, _MORE, found),
        _grid(gaps, found.differences, _GAPS, found),
    ]
    return [table for table in tables if table.rows]


def facts(experiment: Experiment, found: Diagnosis) -> dict[str, str]:
    """Facts about all contexts: the rollouts, the null check, the minimum detectable effect."""
    told = {
        "Rollouts": f"{found.rollouts}: {found.accuracy:.0%} correct, {found.well_formed:.0%} "
        "well-formed",
        **_without_context(experiment.prompts, found.null_kl),
    }
    plan = f"{experiment.problems.test} test problems × {experiment.evaluation.samples} samples"
    plan = f"{plan}, seeds: {len(experiment.seeds)}"
    if found.variance is None or found.detectable is None:
        needs = "needs diagnose.rollouts and problems.test of 2 or more"
        return told | {"Minimum detectable effect": needs}
    return told | {
        "Variance of correctness": f"{found.variance.between:.3f} between problems, "
        f"{found.variance.within:.3f} within one",
        "Planned test": plan,
        "Minimum detectable effect": _effects(found.detectable),
    }


def _effects(found: Detectable) -> str:
    """The effect for the planned seeds, by how far these deviate, and what it assumes."""
    points = {100 * deviation: 100 * effect for deviation, effect in found.effect.items()}
    assumed = f"power {POWER:.0%}; both policies agree to {AGREEMENT:g} on the hard problems"
    if found.seeds == 1:
        return f"{points[0.0]:.1f} points of avg@k, within this seed only ({assumed})"
    listed = ", ".join(f"{effect:.1f} at {deviation:g}" for deviation, effect in points.items())
    return (
        f"in points of avg@k, by the seed deviation of the difference in points: {listed} "
        f"(with {found.seeds} seeds, {assumed})"
    )


def printable(experiment: Experiment, found: Diagnosis) -> list[tuple[str, pl.DataFrame]]:
    """Titles and text frames, for a terminal or as Markdown."""
    told = facts(experiment, found)
    return [
        ("What can be gained", pl.DataFrame(list(map(asdict, prospects(experiment, found))))),
        ("Verdicts", pl.DataFrame(verdicts(found))),
        *((grid.title, grid.text()) for grid in grids(found)),
        ("Tokens", _lengths(found)),
        ("The preflight", pl.DataFrame({"what": told.keys(), "found": told.values()})),
    ]


def verdicts(found: Diagnosis) -> list[dict[str, str]]:
    """The verdicts as text, with the tokens from which there is something to learn."""
    return [
        {"context": each.context, "word": each.word,
         "teacher better at": _places(each.better_at), "why": each.why}
        for each in found.verdicts
    ]  # fmt: skip


def _places(masks: Sequence[str] | None) -> str:
    if masks is None:
        return "not known"
    return ", ".join(masks) or "no tokens"


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """The findings as plain values; frames are lists of rows."""

    def plain(value: object) -> object:
        if isinstance(value, pl.DataFrame):
            return value.fill_nan(None).to_dicts()
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in vars(found).items()}


def write_page(store: Store, experiment: Experiment, found: Diagnosis, folder: Path) -> Path:
    """Write `<experiment_id>-diagnosis.html` into the folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment.experiment_id}-diagnosis.html"
    path.write_text(render_diagnosis(store, experiment, found), "utf-8")
    return path


def render_diagnosis(store: Store, experiment: Experiment, found: Diagnosis) -> str:
    """The page as text; all that comes from tables is escaped."""
    names = [name for name in found.contexts if name != NULL]
    return render_page(
        "diagnosis.html.jinja",
        experiment=experiment,
        experiment_id=experiment.experiment_id,
        confidence=f"{experiment.evaluation.confidence:.0%}",
        colours=plots.colours(names),
        contexts=[experiment.known_contexts[name] for name in names if name != OWN_PROMPT],
        prospects=prospects(experiment, found),
        verdicts=verdicts(found),
        rules=RULES,
        facts=facts(experiment, found),
        grids=grids(found),
        meanings={
            heading: (MEASURES | teacher_ability.MEASURES | viability.MEASURES)[name]
            for shown in (_ABLE, _GAINS, _ADDED, _VIABLE, _WHERE, _MORE)
            for name, (heading, *_) in shown.items()
        },
        lengths=_lengths(found),
        examples=examples(store, experiment, found),
    )


def examples(store: Store, experiment: Experiment, found: Diagnosis) -> list[heatmaps.Example]:
    """Two wrong traces and a correct one, under every context but the null one."""
    names = [name for name in found.contexts if name not in (NULL, OWN_PROMPT)]
    return [
        example
        for correct, count in ((False, 2), (True, 1))
        for example in heatmaps.frozen_examples(
            store, experiment.experiment_id, names, correct=correct, count=count
        )
    ]


def _grid(title: str, frame: pl.DataFrame, shown: Shown, found: Diagnosis) -> Grid:
    cells: dict[str, dict[str, Cell]] = {}
    for row in frame.iter_rows(named=True):
        if row["measure"] in shown:
            _, form, scale = shown[row["measure"]]
            numbers = [scale * row[end] for end in ("value", "low", "high")]
            cells.setdefault(row["context"], {})[row["measure"]] = cell(numbers, form, " to ")
    rows = {
        context: [cells[context].get(measure) for measure in shown]
        for context in found.contexts
        if context in cells
    }
    return Grid(title, tuple(heading for heading, *_ in shown.values()), rows)


def _without_context(prompts: PromptsConfig, kl: float) -> dict[str, str]:
    """The null check, unless the teacher's prompt differs from the student's without a context."""
    if not prompts.teacher_differs:
        return {"Null check": f"largest KL {kl:.1e} nats on the student's own prompt"}
    what = "The teacher's own prompt alone" if prompts.own_system else "Thinking mode alone"
    return {what: f"largest KL {kl:.1e} nats without a context"}


def _lengths(found: Diagnosis) -> pl.DataFrame:
    """Lengths in tokens as text, in the order of the contexts."""
    order = pl.col("context").cast(pl.Enum(found.contexts))
    return found.lengths.sort(order).select(
        "context",
        pl.format("{} of {}", "rollouts", pl.lit(found.rollouts)).alias("rollouts scored"),
        pl.col("context_tokens").round(1).cast(pl.String).alias("context tokens"),
        pl.col("response_tokens").round(1).cast(pl.String).alias("response tokens"),
        pl.col("longest").cast(pl.String).alias("longest sequence"),
        pl.format("{}%", (100 * pl.col("truncated")).round(1)).alias("cut off"),
    )


def _text(value: Cell | None) -> str:
    if value is None:
        return ""
    return f"{value.value} ({value.interval})" if value.interval else value.value
