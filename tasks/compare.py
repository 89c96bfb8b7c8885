"""The last stage: conditions compared, the chosen policies registered, the report written."""

import polars as pl
from matplotlib.figure import Figure
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import comparison
from sdcore.reports import plots
from sdcore.reports.experiment import write_report
from tasks.run.condition_run import ConditionRun
from tasks.tracking import artifacts, champions


@task(cache_policy=NO_CACHE, task_run_name="compare {base.experiment.name}")
def compare(base: ConditionRun) -> int:
    """Store the paired differences, register the champions, write the report and log it all.

    Returns:
        How many differences there are.
    """
    experiment_id = base.experiment.experiment_id
    differences = comparison.comparisons(base.store, experiment_id)
    base.store.append_missing(comparisons=differences)
    table, curves = log_comparison(base)
    artifacts.publish(base, table, curves)
    return len(differences)


def log_comparison(base: ConditionRun) -> tuple[pl.DataFrame, Figure]:
    """Write the report and log what the tables say to MLflow: summary, curves and champions.

    Returns:
        Summary and learning curves.
    """
    experiment, experiment_id = base.experiment, base.experiment.experiment_id
    table = comparison.summary(base.store, experiment_id)
    report = write_report(base.store, experiment_id, base.root / "reports")
    scores = base.store.rows("scores", experiment_id=experiment_id)
    curves = plots.learning_curves(scores, list(experiment.conditions))
    champions.register(base)
    with base.session.tracking() as tracking:
        tracking.log_summary(experiment, table)
        tracking.log_table(experiment, table, "comparison.csv")
        tracking.log_figure(experiment, curves, "learning_curves.png")
        tracking.log_text(experiment, report.read_text("utf-8"), "report.html")
        tracking.finish(experiment)
    return table, curves
