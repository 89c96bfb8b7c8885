"""What Prefect's UI shows of a finished run: table, curves, a token heatmap, the way to MLflow."""

import base64
import os
from collections.abc import Iterable

import polars as pl
from matplotlib.figure import Figure
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
)

from sdcore import comparison, plots, printing
from sdcore.heatmaps import examples
from sdcore.token_maps import token_map
from tasks.progress import artifact_key
from tasks.track import open_tracking
from tasks.workspace import Lineage


def publish(base: Lineage, table: pl.DataFrame, curves: Figure) -> None:
    """Make the artifacts of the experiment's comparison; made again, each is a new version."""
    experiment, about = base.experiment, base.experiment.experiment_id

    def key(name: str) -> str:
        return artifact_key(experiment.name, name)

    create_markdown_artifact(_markdown(base, table), key("comparison"), f"conditions of {about}")
    create_image_artifact(_address(curves), key("curves"), f"learning curves of {about}")
    for figure in _token_maps(base):
        create_image_artifact(_address(figure), key("tokens"), f"token advantages in {about}")
    if mlflow := os.environ.get("SDCORE_MLFLOW_URL"):
        page = f"{mlflow}/#/{open_tracking(base.root).page(experiment)}"
        create_link_artifact(page, f"{about} in MLflow", key("mlflow"))


def publish_diagnosis(
    lineage: Lineage, tables: list[tuple[str, pl.DataFrame]], figures: list[Figure]
) -> None:
    """Make the artifacts of the preflight: its tables, and one trace under every context."""
    experiment, about = lineage.experiment, lineage.experiment.experiment_id
    key = artifact_key(experiment.name, "diagnosis")
    create_markdown_artifact(_tables(tables), key, f"contexts of {about}")
    for figure in figures:
        key = artifact_key(experiment.name, "contexts")
        create_image_artifact(_address(figure), key, f"one trace of {about} under each context")


def _markdown(base: Lineage, table: pl.DataFrame) -> str:
    experiment_id = base.experiment.experiment_id
    differences = base.store.rows("comparisons", experiment_id=experiment_id)
    signals = comparison.signal_summary(base.store, experiment_id)
    return _tables(printing.printable(table, differences, signals))


def _tables(parts: Iterable[tuple[str, pl.DataFrame]]) -> str:
    return "\n\n".join(f"**{title}**\n\n{printing.markdown(frame)}" for title, frame in parts)


def _token_maps(base: Lineage) -> list[Figure]:
    """One wrong trace of the first round under every context, if token signals are stored."""
    experiment = base.experiment
    names = list(experiment.conditions)
    found = examples(base.store, experiment.experiment_id, names, correct=False, count=1)
    return [token_map(each.maps, f"{each.question}  answered {each.answer}") for each in found]


def _address(figure: Figure) -> str:
    """The picture itself as an address: it needs no server and moves with Prefect's database."""
    return "data:image/png;base64," + base64.b64encode(plots.png(figure)).decode()
