"""Prefect artifacts of a finished run: table, curves, a token heatmap, the link to MLflow."""

import base64
import os
from collections.abc import Iterable

import polars as pl
from matplotlib.figure import Figure
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from sdcore.analysis import comparison
from sdcore.reports import plots, printing
from sdcore.reports.heatmaps import examples
from sdcore.reports.token_maps import token_map
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import artifact_key


def publish(base: ConditionRun, table: pl.DataFrame, curves: Figure) -> None:
    """Make the artifacts of the experiment's comparison; made again, each is a new version."""
    experiment, about = base.experiment, base.experiment.experiment_id

    def key(name: str) -> str:
        return artifact_key(experiment.name, name)

    text = f"{_tables(base, table)}\n\n{_picture(curves, 'learning curves')}"
    create_markdown_artifact(text, key("comparison"), f"conditions of {about}")
    if tokens := _tokens(base):
        create_markdown_artifact(tokens, key("tokens"), f"token advantages in {about}")
    with base.session.tracking() as tracking:
        server = tracking.shared.shown if tracking.shared and tracking.shared.is_server else None
        if mlflow := os.environ.get("SDCORE_MLFLOW_URL", server):
            page = f"{mlflow}/#/{tracking.page(experiment)}"
            create_link_artifact(page, f"{about} in MLflow", key("mlflow"))


def publish_diagnosis(
    run: ConditionRun, tables: list[tuple[str, pl.DataFrame]], figures: list[Figure]
) -> None:
    """Make the artifact of the preflight: its tables, and one trace under every context."""
    experiment, about = run.experiment, run.experiment.experiment_id
    pictures = [_picture(figure, "one trace under each context") for figure in figures]
    text = "\n\n".join([_titled(tables), *pictures])
    create_markdown_artifact(
        text, artifact_key(experiment.name, "diagnosis"), f"contexts of {about}"
    )


def publish_design(base: ConditionRun, tables: list[tuple[str, pl.DataFrame]]) -> None:
    """Make the artifact of a search: its result, ranking and budget."""
    experiment = base.experiment
    about = f"search for feedback for {experiment.experiment_id}"
    create_markdown_artifact(_titled(tables), artifact_key(experiment.name, "design"), about)


def _tables(base: ConditionRun, table: pl.DataFrame) -> str:
    experiment_id = base.experiment.experiment_id
    differences, by_seed = (
        base.store.rows(name, experiment_id=experiment_id)
        for name in ("comparisons", "seed_differences")
    )
    signals = comparison.signal_summary(base.store, experiment_id)
    warnings = comparison.warnings(base.store, experiment_id)
    trials = base.store.rows("trials", experiment_id=experiment_id)
    return _titled(printing.printable(table, differences, by_seed, signals, warnings, trials))


def _titled(parts: Iterable[tuple[str, pl.DataFrame]]) -> str:
    return "\n\n".join(f"**{title}**\n\n{printing.markdown(frame)}" for title, frame in parts)


def _tokens(base: ConditionRun) -> str | None:
    """A wrong trace of the first round under every context, if token signals are stored."""
    experiment = base.experiment
    names = comparison.conditions(base.store, experiment)
    found = examples(base.store, experiment.experiment_id, names, correct=False, count=1)
    if not found:
        return None
    title = f"{found[0].question}  answered {found[0].answer}, not {found[0].reference}"
    legend = "Blue: the context confirms the token. Orange: it objects to it."
    return f"{legend}\n\n{_picture(token_map(found[0].maps, title), 'tokens by advantage')}"


def _picture(figure: Figure, what: str) -> str:
    """The picture as Markdown, itself its address: it needs no server and moves with the text."""
    return f"![{what}](data:image/png;base64,{base64.b64encode(plots.png(figure)).decode()})"
