"""The last stage: conditions compared, the chosen policies registered, the report written."""

import polars as pl
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from sdcore import comparison, plots, printing
from sdcore.report import write_report
from sdcore.timing import STOPWATCH
from tasks import models
from tasks.track import open_tracking
from tasks.tracking import Tracking
from tasks.workspace import Lineage, Reference, policy_row


@task(cache_policy=NO_CACHE, task_run_name="compare {base.experiment.name}")
def compare(base: Lineage) -> Reference:
    """Store the paired differences, register the champions, write the report and log it all."""
    experiment, experiment_id = base.experiment, base.experiment.experiment_id
    with STOPWATCH.measure("compute"):
        differences = comparison.comparisons(base.store, experiment_id)
        base.store.append_missing(comparisons=differences)
        table = comparison.summary(base.store, experiment_id)
        report = write_report(base.store, experiment_id, base.root / "reports")
    create_markdown_artifact(_markdown(base, table), key="comparison", description=experiment_id)
    with STOPWATCH.measure("tracking"):
        tracking = open_tracking(base.root)
        _register(base, tracking)
        scores = base.store.rows("scores", experiment_id=experiment_id)
        tracking.log_table(experiment, table, "comparison.csv")
        curves = plots.learning_curves(scores, list(experiment.conditions))
        tracking.log_figure(experiment, curves, "learning_curves.png")
        tracking.log_text(experiment, report.read_text("utf-8"), "report.html")
        tracking.finish(experiment)
    return Reference("comparisons", experiment_id, len(differences))


def _register(base: Lineage, tracking: Tracking) -> None:
    """Register each condition's best seed on validation, and the best of these as champion."""
    experiment = base.experiment
    warmed_up = models.base_folder(base) if experiment.warmup else None
    scores = base.store.rows("scores", experiment_id=experiment.experiment_id, split="validation")
    chosen = comparison.chosen_rounds(scores).join(scores, on=["condition", "seed", "round"])
    ranked = chosen.sort("avg_at_k", "condition", "seed", descending=[True, False, False])
    best = ranked.group_by("condition", maintain_order=True).first()
    for rank, row in enumerate(best.iter_rows(named=True)):
        lineage = Lineage(experiment, base.root, row["condition"], row["seed"])
        aliases = [f"champion-{row['condition']}"] + (["champion"] if rank == 0 else [])
        policy = policy_row(lineage, row["round"])
        tracking.register(experiment, policy, base.root / policy["path"], aliases, warmed_up)


def _markdown(base: Lineage, table: pl.DataFrame) -> str:
    experiment_id = base.experiment.experiment_id
    differences = base.store.rows("comparisons", experiment_id=experiment_id)
    signals = comparison.signal_summary(base.store, experiment_id)
    parts = printing.printable(table, differences, signals)
    return "\n\n".join(f"**{title}**\n\n{printing.markdown(frame)}" for title, frame in parts)
