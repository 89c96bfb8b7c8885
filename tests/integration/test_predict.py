"""The study of the preflight's predictions, in small: the shipped file from run to figure."""

import json

import pytest

from tests.helpers.paths import EXPERIMENTS
from tests.helpers.runs import sdcore

pytestmark = [pytest.mark.night, pytest.mark.usefixtures("prefect")]
TINY = [
    "seeds=[0]", "problems.train=8", "problems.validation=2", "problems.test=4",
    "training.rounds=1", "training.questions_per_round=8", "training.warmup_steps=0",
    "evaluation.every=1", "evaluation.samples=2", "evaluation.validation_samples=1",
    "evaluation.resamples=200", "diagnose.problems=8",
]  # fmt: skip


def test_a_finished_study_gives_correlations_gains_and_a_figure(tmp_path):
    file, where = EXPERIMENTS / "predict.toml", ["--workspace", tmp_path]
    refused = sdcore("predict", file, *TINY, *where, check=False)
    assert refused.returncode == 1 and "nothing to compare" in refused.stderr
    sdcore("run", file, *TINY, *where)
    found = json.loads(sdcore("predict", file, *TINY, *where, "--json").stdout)
    conditions = {row["condition"]: row for row in found["conditions"]}
    assert len(conditions) == 14
    assert conditions["step_aligned_until_error"]["after_error"] == 0
    assert conditions["step_aligned"]["after_error"] > 0
    by_context = {row["context"]: row["error_auc"] for row in conditions.values()}
    assert by_context["reference"] == conditions["reference_until_error"]["error_auc"]
    assert {row["among"] for row in found["correlations"]} == {"every mask", "all", "until_error"}
    assert sum(row["conditions"] for row in found["verdicts"]) == 14
    assert list(tmp_path.glob("reports/predict-*-predict.png"))
