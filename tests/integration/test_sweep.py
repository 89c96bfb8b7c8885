"""A sweep with real parts, in this process: trials, an extension, winners on test, a second start."""

from dataclasses import replace

import polars as pl
import pytest

from flows import compare_contexts as flow
from sdcore.analysis.scoring import score
from sdcore.config import Experiment, load_experiment
from sdcore.store.database import Store
from tasks import evaluate as evaluation
from tasks.tracking import artifacts
from tests.helpers.runs import metrics, tables

SWEEPING = """
name = "sweeping"
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 4, validation = 2, test = 2 }
sampling = { max_new_tokens = 48, batch_size = 64 }
training = { rounds = 1, questions_per_round = 2 }
evaluation = { every = 1, samples = 1, validation_samples = 1, resamples = 100 }
sweep = { max_trials = 3 }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.reference]
objective = "distill"
context = "reference"
learning_rate = [1e-5, 2e-5]
[conditions.step_aligned]
objective = "distill"
context = "step_aligned"
learning_rate = 2e-5
"""
STAGES = ("prepare", "evaluate", "track", "sample", "align", "distill", "choose", "compare")


@pytest.fixture
def without_prefect(monkeypatch):
    for stage in STAGES:
        monkeypatch.setattr(flow, stage, getattr(flow, stage).fn)
    monkeypatch.setattr(artifacts, "publish", lambda *_: None)


@pytest.mark.usefixtures("without_prefect")
def test_the_grid_grows_to_its_maximum_and_the_winner_alone_is_scored_on_test(
    tmp_path, monkeypatch
):
    """At the maximum of three trials the highest rate is still best: 0, 1 and 2 of 2 problems."""
    file, root = tmp_path / "sweeping.toml", tmp_path / "runs"
    file.write_text(SWEEPING, "utf-8")
    experiment = load_experiment(file)
    marks = {1e-5: 0.0, 2e-5: 0.5, 4e-5: 1.0}
    run_of = {}

    def by_rate(rollouts, k, settings):
        """Scores as if the rate decided them."""
        condition, purpose = rollouts["condition"][0], rollouts["purpose"][0]
        found = score(rollouts, k, settings)
        rate = condition.rpartition("-learning_rate-")[2]
        if purpose == "test" or rate == condition:
            return found
        return replace(found, columns=found.columns | {"avg_at_k": marks[float(rate)]})

    monkeypatch.setattr(evaluation, "score", by_rate)
    flow.compare_contexts.fn(experiment, root)
    rows = tables(root)
    assert rows["trials"].select("trial", "extension", "validation", "chosen").rows() == [
        ("reference-learning_rate-1e-05", 0, 0.0, False),
        ("reference-learning_rate-2e-05", 0, 0.5, False),
        ("reference-learning_rate-4e-05", 1, 1.0, True),
    ]
    assert "sweep.max_trials = 3" in rows["trials"]["why"][2]
    on_test = rows["scores"].filter(split="test")["condition"].unique().to_list()
    assert sorted(on_test) == ["base", "reference-learning_rate-4e-05", "step_aligned"]
    assert set(rows["comparisons"]["condition"]) == {
        "reference-learning_rate-4e-05", "step_aligned",
    }  # fmt: skip
    stored = Experiment.model_validate_json(rows["experiments"]["config"][0])
    assert stored.experiment_id == experiment.experiment_id
    assert stored.conditions["reference-learning_rate-4e-05"].learning_rate == 4e-5
    logged = metrics(root)
    assert "test/avg_at_k" in logged["reference-learning_rate-4e-05/seed-0"]
    assert "test/avg_at_k" not in logged["reference-learning_rate-2e-05/seed-0"]
    page = (root / "reports" / f"{experiment.experiment_id}.html").read_text("utf-8")
    assert "is at an edge" in page and "unequal search budget" in page
    flow.compare_contexts.fn(experiment, root)  # from the file, which lacks the third trial
    again = tables(root)
    assert all(again[name].equals(rows[name]) for name in rows)
