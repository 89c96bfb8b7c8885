"""The last stage: compare the conditions, register the chosen policies, write the report."""

import polars as pl
from matplotlib.figure import Figure
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import comparison
from sdcore.reports import plots
from sdcore.reports.experiment import write_report
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import note
from tasks.tracking import artifacts, champions


@task(cache_policy=NO_CACHE, task_run_name="compare {base.experiment.name}")
def compare(base: ConditionRun) -> int:
    """Store the paired differences, register the champions, write the report and log it all.

    Warnings come last: winners of a sweep at an edge, what trained nothing, signs of a collapse.

    Returns:
        How many differences are new.
    """
    experiment_id = base.experiment.experiment_id
    with base.session.clock.measure("analysis"):
        count = store_differences(base)
        table, curves = log_comparison(base)
        artifacts.publish(base, table, curves)
    for condition, text in comparison.warnings(base.store, experiment_id).iter_rows():
        note(f"WARNING: {condition}: {text}")
    return count


def store_differences(base: ConditionRun) -> int:
    """Store the paired differences; if any stored one is another now, all of them are superseded.

    So are those of a pair that is compared no more, such as with a trial that another has replaced.

    Returns:
        How many are new or others than before.
    """
    run: dict[str, object] = {"experiment_id": base.experiment.experiment_id}
    names = ("comparisons", "seed_differences")
    made = comparison.comparisons(base.store, base.experiment.experiment_id)
    now = dict(zip(names, made, strict=True))
    before = {name: base.store.rows(name, **run) for name in names}
    if any(len(_without(before[name], now[name])) for name in names):
        base.store.supersede(dict.fromkeys(names, "experiment_id = $experiment_id"), run, **now)
    else:
        base.store.append_missing(**now)
    return len(_without(now["comparisons"], before["comparisons"]))


def _without(rows: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not among others of the same columns."""
    return rows.join(others, on=rows.columns, how="anti", nulls_equal=True)


def log_comparison(base: ConditionRun) -> tuple[pl.DataFrame, Figure]:
    """Write the report, and log summary, curves and champions to MLflow.

    Returns:
        Summary and learning curves.
    """
    experiment, experiment_id = base.experiment, base.experiment.experiment_id
    table = comparison.summary(base.store, experiment_id)
    trials = base.store.rows("trials", experiment_id=experiment_id)
    report = write_report(base.store, experiment_id, base.root / "reports")
    points = comparison.curves(base.store, experiment_id)
    curves = plots.learning_curves(points, comparison.conditions(base.store, experiment))
    champions.register(base)
    with base.session.tracking() as tracking:
        tracking.log_summary(experiment, table)
        tracking.log_table(experiment, table, "comparison.csv")
        if len(trials):
            tracking.log_trials(experiment, trials)
        tracking.log_figure(experiment, curves, "learning_curves.png")
        tracking.log_text(experiment, report.read_text("utf-8"), "report.html")
        tracking.finish(experiment)
    return table, curves
