"""The result of `sdcore design`: text tables, a self-contained HTML page and the winner's file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sdcore.analysis.intervals import coverage
from sdcore.config import Experiment
from sdcore.design.ranking import MEASURES, RULES
from sdcore.design.schedule import Rung, stage_of
from sdcore.reports.html import Cell, cell, render_page

Row = Mapping[str, Any]

_HEADLINES = {
    "confirmed": "{winner} is better than {baseline}.",
    "refuted": "{winner} won the search but is worse than {baseline}: keep {baseline}.",
    "not shown": "{winner} won the search, but is not shown to be better than {baseline}.",
    "kept": "Nothing beats {baseline}, the file's own condition.",
    "no winner": "The search has no winner.",
}
_FATES = ("kept", "dropped", "skipped")


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        experiment: the file.
        design_id: the search.
        search_id: the run of the preflight and the rungs.
        confirmation_id: the run that compared winner and baseline; None where there was none.
        baseline: what the winner is compared with.
        winner: the best of the last rung.
        word: confirmed, not shown, refuted; kept (the baseline has won), or no winner.
        reason: the word's, in numbers.
        rungs: the schedule.
        group_sizes: rollouts per question of the candidates, each number once.
        bounds: most sampled tokens by stage.
        critic_bounds: about how many tokens the critic reads and writes at most, by stage; none
            where it is exact.
        candidates: rows of the table `candidates`, by rung and rank.
        reused: other runs of the workspace that have sampled test problems of the confirmation, and
            how many of them.
        file: the winner's experiment file.
    """

    experiment: Experiment
    design_id: str
    search_id: str
    confirmation_id: str | None
    baseline: str
    winner: str | None
    word: str
    reason: str
    rungs: tuple[Rung, ...]
    group_sizes: tuple[int, ...]
    bounds: Mapping[str, int]
    critic_bounds: Mapping[str, int]
    candidates: pl.DataFrame
    reused: tuple[tuple[str, int], ...]
    file: str | None

    @property
    def headline(self) -> str:
        """The decision in a sentence or two."""
        said = _HEADLINES[self.word].format(winner=self.winner, baseline=self.baseline)
        return f"{said} {self.reason[:1].upper()}{self.reason[1:]}."

    @property
    def page_name(self) -> str:
        """Name of the page's file."""
        return f"{self.design_id}-design.html"

    @property
    def file_name(self) -> str:
        """Name of the winner's file."""
        return f"{self.design_id}-winner.toml"


@dataclass(frozen=True)
class Line:
    """A candidate on the page: its score at each stage, its cost and its result."""

    name: str
    context: str
    tokens: str
    divergence: str
    preflight: tuple[str, ...]  # score and its measures; "—" is missing
    rungs: tuple[Cell | None, ...]
    sampled: int
    fate: str


def ranking(outcome: Outcome) -> list[Line]:
    """The candidates that could be trained, best first: who went further is better."""
    by_name: dict[str, list[Row]] = {}
    for row in outcome.candidates.filter(pl.col("fate") != "skipped").iter_rows(named=True):
        by_name.setdefault(row["candidate"], []).append(row)
    last = len(outcome.rungs)

    def place(rows: Sequence[Row]) -> tuple[int, int]:
        own = [row for row in rows if row["rung"] <= last]
        return -own[-1]["rung"], own[-1]["rank"]

    return [_line(outcome, rows) for rows in sorted(by_name.values(), key=place)]


def skipped(outcome: Outcome) -> pl.DataFrame:
    """Return the candidates that could not be trained: columns candidate, reason."""
    return outcome.candidates.filter(fate="skipped").select("candidate", "reason")


def costs(outcome: Outcome) -> pl.DataFrame:
    """Tokens and money by stage, in all last.

    Columns: stage, at_most (sampled tokens), sampled, critic_at_most, critic_tokens, cost.
    """
    rows = []
    for rung, (stage, bound) in enumerate(outcome.bounds.items()):
        own = outcome.candidates.filter(rung=rung)
        rows.append(
            {"stage": stage, "at_most": bound, "sampled": own["sampled_tokens"].sum()}
            | {"critic_at_most": outcome.critic_bounds.get(stage, 0)}
            | {"critic_tokens": own["critic_tokens"].sum(), "cost": own["cost"].sum()}
        )
    frame = pl.DataFrame(rows)
    return pl.concat(
        [frame, frame.select(pl.lit("in all").alias("stage"), pl.exclude("stage").sum())]
    )


def printable(outcome: Outcome) -> list[tuple[str, pl.DataFrame]]:
    """Titles and text frames, for a terminal or as Markdown."""
    stages = [stage_of(rung, outcome.rungs) for rung in range(len(outcome.rungs) + 2)]
    lines = [
        {"candidate": line.name, "preflight": line.preflight[0]}
        | {stage: _text(each) for stage, each in zip(stages[1:], line.rungs, strict=True)}
        | {"tokens sampled": f"{line.sampled:,}", "result": line.fate}
        for line in ranking(outcome)
    ]
    left_out = skipped(outcome)
    return [
        ("Result", pl.DataFrame({"result": [outcome.headline]})),
        ("Ranking", pl.DataFrame(lines)),
        *([("Skipped", left_out)] if len(left_out) else []),
        ("Budget", costs(outcome)),
    ]


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain values, for JSON."""
    names = ("design_id", "search_id", "confirmation_id", "baseline", "winner", "word", "reason")
    rows = outcome.candidates.with_columns(pl.col("decided_at").cast(pl.String)).fill_nan(None)
    return {name: getattr(outcome, name) for name in names} | {
        "candidates": rows.to_dicts(),
        "costs": costs(outcome).to_dicts(),
        "file": outcome.file,
    }


def write_page(outcome: Outcome, folder: Path) -> Path:
    """Write the page and, beside it, the winner's experiment file; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if outcome.file is not None:
        (folder / outcome.file_name).write_text(outcome.file, "utf-8")
    path = folder / outcome.page_name
    path.write_text(render_design(outcome), "utf-8")
    return path


def render_design(outcome: Outcome) -> str:
    """The page as text; all that comes from tables is escaped."""
    return render_page(
        "design.html.jinja",
        outcome=outcome,
        facts=_facts(outcome),
        lines=ranking(outcome),
        stages=[stage_of(rung, outcome.rungs) for rung in range(1, len(outcome.rungs) + 2)],
        schedule=outcome.rungs,
        covers=_covered(outcome),
        skipped=skipped(outcome),
        costs=costs(outcome),
        measures=MEASURES,
        rules=RULES,
    )


def _covered(outcome: Outcome) -> dict[str, str]:
    """What the intervals cover, in the rungs and in the confirmation."""
    last, found = len(outcome.rungs), dict[str, str]()
    scored = outcome.candidates.drop_nulls("low")
    for stage, rows in (
        ("rungs", scored.filter(pl.col("rung").is_between(1, last))),
        ("confirmation", scored.filter(pl.col("rung") > last)),
    ):
        found[stage] = " / ".join(map(coverage, sorted(set(rows["seeds"])))) or "nothing"
    return found


def _facts(outcome: Outcome) -> dict[str, str]:
    experiment, spent = outcome.experiment, costs(outcome).row(-1, named=True)
    told = {
        "Sampled tokens": f"{spent['sampled']:,} of at most {spent['at_most']:,}",
        "The file": f"{experiment.name}, compared with its condition {outcome.baseline}",
    }
    if len(outcome.group_sizes) > 1:
        told["Rollouts per question"] = (
            f"{', '.join(map(str, outcome.group_sizes))}: candidates with more of them have "
            "sampled and trained on more in as many rounds, which the ranking does not count"
        )
    if most := experiment.design.max_tokens:
        told["Budget in tokens"] = f"{most:,}"
    if spent["critic_tokens"]:
        limits = experiment.design.critic_limits
        tokens = f"{spent['critic_tokens']:,} tokens of about {spent['critic_at_most']:,} at most"
        tokens += "" if limits.tokens is None else f", allowed {limits.tokens:,}"
        cost = f"{spent['cost']:.4g}" + (
            "" if limits.cost is None else f" of at most {limits.cost:g}"
        )
        told["The critic"] = f"{tokens}; cost {cost}"
    if outcome.confirmation_id is not None:
        told["Fresh problems"] = (
            f"the {experiment.problems.test} test problems of the file, of which neither the "
            "preflight nor a rung has sampled any"
        )
        if outcome.reused:
            runs = ", ".join(f"{run} ({count})" for run, count in outcome.reused)
            told["Sampled elsewhere"] = f"other runs of this workspace sampled some of them: {runs}"
    return told


def _line(outcome: Outcome, rows: Sequence[Row]) -> Line:
    first, last = rows[0], len(outcome.rungs)
    known = {row["rung"]: row for row in rows}
    decided = [row for row in rows if row["fate"] in _FATES][-1]
    end = known.get(last + 1)
    where = stage_of(decided["rung"], outcome.rungs)
    fate = f"{decided['fate']} after {where}: {decided['reason']}"
    if decided["rung"] == last and decided["fate"] == "kept":
        fate = "winner of the search"
    if end is not None:
        fate = f"{fate}; {end['fate']}"
    return Line(
        name=first["candidate"],
        context=first["context"],
        tokens=first["learns_from"],
        divergence=(first["divergence"] or "").replace("_", " ").replace("kl", "KL"),
        preflight=tuple(_share(first[name]) for name in ("score", *MEASURES)),
        rungs=tuple(_scored(known.get(rung)) for rung in range(1, last + 2)),
        sampled=sum(row["sampled_tokens"] for row in rows),
        fate=fate,
    )


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _scored(row: Row | None) -> Cell | None:
    if row is None or row["score"] is None:
        return None
    return cell([100 * row[end] for end in ("score", "low", "high")], ".1f", "–")


def _text(value: Cell | None) -> str:
    if value is None:
        return ""
    return f"{value.value} ({value.interval})" if value.interval else value.value
