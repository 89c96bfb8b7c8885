"""Compare what the preflight measured with what the training brought, condition by condition."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import prediction
from sdcore.analysis.preflight import Diagnosis, measured_as
from sdcore.analysis.verdicts import Verdict
from sdcore.config import Condition
from sdcore.design.ranking import preflight_parts, preflight_score
from sdcore.errors import DataError
from sdcore.reports.plots import png
from sdcore.reports.prediction import Prediction, figure
from tasks.aims import loss_up_to_error
from tasks.run.condition_run import BASE, ConditionRun
from tasks.run.progress import note


@task(cache_policy=NO_CACHE, task_run_name="compare preflight and gains {base.experiment.name}")
def compare_with_gains(base: ConditionRun, found: Diagnosis) -> Prediction:
    """Correlate the preflight's measures with the gains of a finished run; write and log a figure.

    Args:
        base: of a finished run.
        found: its preflight.

    Raises:
        DataError: the run is not finished, or the preflight judges the contexts of fewer than two
            conditions.
    """
    experiment, judged = base.experiment, {each.context: each for each in found.verdicts}
    shown = {
        name: measured_as(experiment, each.teacher_context)
        for name, each in experiment.conditions.items()
        if each.teacher_context
    }
    if unknown := [name for name, context in shown.items() if context not in judged]:
        note(f"left out, since the preflight does not judge their contexts: {', '.join(unknown)}")
    taught = {name: experiment.conditions[name] for name in shown if name not in unknown}
    gains = base.store.rows(
        "comparisons", experiment_id=experiment.experiment_id, baseline=BASE,
        metric="avg_at_k", budget="epochs",
    ).filter(pl.col("condition").is_in(list(taught)))  # fmt: skip
    if len(gains) < 2:
        raise DataError(
            "nothing to compare the preflight with",
            got=f"{len(gains)} trained conditions with a context that the preflight judges",
            expected="two or more, in a finished run",
            where=experiment.experiment_id,
            fix="finish it with `sdcore run FILE` in the same workspace, and let diagnose.contexts "
            "name the contexts of its conditions",
        )
    aims = loss_up_to_error(base, taught)
    rows = [
        _row(row, taught[row["condition"]], judged[shown[row["condition"]]], found, aims)
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
    gain: dict[str, Any],
    condition: Condition,
    verdict: Verdict,
    found: Diagnosis,
    aims: Mapping[str, float | None],
) -> dict[str, object]:
    rows = found.measures.filter(context=verdict.context).iter_rows(named=True)
    measured, aim = {row["measure"]: row["value"] for row in rows}, aims[gain["condition"]]
    known = {name: measured.get(name) for name in prediction.MEASURES}
    return {
        "condition": gain["condition"],
        "context": verdict.context,
        "tokens": condition.learns_from,
        "verdict": verdict.word,
        "training_gain": gain["difference"],
        "low": gain["low"],
        "high": gain["high"],
        "covers": gain["covers"],
        "seeds": gain["seeds"],
        **known,
        "after_error": None if aim is None else 1 - aim,
        "score": preflight_score(preflight_parts(measured, aim)),
    }
