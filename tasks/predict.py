"""Compare what the preflight measured with what the training brought, condition by condition."""

from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import prediction
from sdcore.analysis.preflight import Diagnosis
from sdcore.config import Condition
from sdcore.design.ranking import preflight_score
from sdcore.errors import DataError
from sdcore.reports.plots import png
from sdcore.reports.prediction import Prediction, figure
from tasks.aims import loss_up_to_error
from tasks.run.condition_run import BASE, ConditionRun


@task(cache_policy=NO_CACHE, task_run_name="compare preflight and gains {base.experiment.name}")
def compare_with_gains(base: ConditionRun, found: Diagnosis) -> Prediction:
    """Correlate the preflight's measures with the gains of a finished run; write and log a figure.

    Args:
        base: of a finished run.
        found: its preflight.

    Raises:
        DataError: the run is not finished, or fewer than two conditions show a context.
    """
    experiment = base.experiment
    taught = {name: each for name, each in experiment.conditions.items() if each.teacher_context}
    gains = base.store.rows(
        "comparisons", experiment_id=experiment.experiment_id, baseline=BASE,
        metric="avg_at_k", budget="epochs",
    ).filter(pl.col("condition").is_in(list(taught)))  # fmt: skip
    if len(gains) < 2:
        raise DataError(
            "nothing to compare the preflight with",
            got=f"{len(gains)} trained conditions that show the teacher a context",
            expected="two or more, in a finished run",
            where=experiment.experiment_id,
            fix="finish it with `sdcore run FILE` in the same workspace",
        )
    aims = loss_up_to_error(base, taught)
    rows = [
        _row(row, taught[row["condition"]], found, aims[row["condition"]])
        for row in gains.iter_rows(named=True)
    ]
    order = pl.Enum(list(taught))
    conditions = pl.DataFrame(rows, infer_schema_length=None).sort(pl.col("condition").cast(order))
    outcome = Prediction(
        conditions=conditions,
        correlations=prediction.correlations(conditions, experiment.evaluation),
        verdicts=prediction.by_verdict(conditions),
        thresholds=prediction.harm_thresholds(conditions),
    )
    drawn = figure(outcome)
    path = base.root / "reports" / f"{experiment.experiment_id}-predict.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(drawn))
    with base.session.tracking() as tracking:
        tracking.log_table(experiment, outcome.conditions, "predict-conditions.csv")
        tracking.log_table(experiment, outcome.correlations, "predict-correlations.csv")
        tracking.log_table(experiment, outcome.thresholds, "predict-thresholds.csv")
        tracking.log_figure(experiment, drawn, "predict.png")
        tracking.finish(experiment)
    return outcome


def _row(
    gain: dict[str, Any], condition: Condition, found: Diagnosis, aim: float | None
) -> dict[str, object]:
    context = condition.teacher_context
    rows = found.measures.filter(context=context).iter_rows(named=True)
    measured = {row["measure"]: row["value"] for row in rows}
    known = {name: measured.get(name) for name in prediction.MEASURES}
    auc = measured.get("error_auc", measured.get("auc"))
    return {
        "condition": gain["condition"],
        "context": context,
        "tokens": condition.learns_from,
        "verdict": next(each.word for each in found.verdicts if each.context == context),
        "training_gain": gain["difference"],
        "low": gain["low"],
        "high": gain["high"],
        "covers": gain["covers"],
        "seeds": gain["seeds"],
        **known,
        "after_error": None if aim is None else 1 - aim,
        "score": preflight_score(measured.get("teacher"), auc, aim),
    }
