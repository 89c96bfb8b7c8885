"""A sweep with a real model, in this process: trials, an extension, the winner on test."""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import MagicMock

import pytest

from flows import compare_contexts as flow
from sdcore.analysis import comparison
from sdcore.analysis.scoring import score
from sdcore.config import Experiment, load_experiment
from tasks import evaluate as evaluation
from tasks.growth import store_grown, stored_settings
from tasks.run.condition_run import base_run
from tasks.run.session import Session
from tests.helpers.runs import tables

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
FIRST, SECOND, THIRD = (f"reference-learning_rate-{rate}" for rate in ("1e-05", "2e-05", "4e-05"))
MARKS = {FIRST: 0.0, SECOND: 0.5, THIRD: 1.0}
STAGES = ("prepare", "evaluate", "track", "sample", "align", "distill", "choose")


@pytest.fixture
def alone(monkeypatch):
    """Without Prefect and MLflow; validation finds a higher rate better."""

    @contextmanager
    def untracked(_):
        yield MagicMock()

    def by_rate(rollouts, k, settings):
        found, condition = score(rollouts, k, settings), rollouts["condition"][0]
        if rollouts["purpose"][0] == "test" or condition not in MARKS:
            return found
        return replace(found, columns=found.columns | {"avg_at_k": MARKS[condition]})

    for stage in STAGES:
        monkeypatch.setattr(flow, stage, getattr(flow, stage).fn)
    monkeypatch.setattr(flow, "compare", lambda base: None)
    monkeypatch.setattr(Session, "tracking", untracked)
    monkeypatch.setattr(evaluation, "score", by_rate)


@pytest.mark.usefixtures("alone")
def test_a_grid_grows_to_its_maximum_and_the_winner_alone_is_scored_on_test(tmp_path):
    file = tmp_path / "sweeping.toml"
    file.write_text(SWEEPING, "utf-8")
    experiment = load_experiment(file)
    flow.compare_contexts.fn(experiment, tmp_path)
    rows = tables(tmp_path)
    assert rows["trials"].select("trial", "extension", "validation", "chosen").rows() == [
        (FIRST, 0, 0.0, False), (SECOND, 0, 0.5, False), (THIRD, 1, 1.0, True),
    ]  # fmt: skip
    assert "sweep.max_trials = 3" in rows["trials"]["why"][2]
    scored = set(rows["scores"].select("condition", "split").rows())
    assert scored == {
        *((name, split) for name in ("base", "step_aligned", THIRD) for split in flow.SPLITS),
        (FIRST, "validation"), (SECOND, "validation"),
    }  # fmt: skip
    stored = Experiment.model_validate_json(rows["experiments"]["config"][0])
    assert stored.experiment_id == experiment.experiment_id
    assert stored.conditions[THIRD].learning_rate == 4e-5
    with Session(tmp_path) as session:
        compared, _ = comparison.comparisons(session.store, experiment.experiment_id)
        warned = comparison.warnings(session.store, experiment.experiment_id)["warning"]
    pairs = {*compared.select("condition", "baseline").rows()}
    assert pairs == {(THIRD, "base"), ("step_aligned", "base"), ("step_aligned", THIRD)}
    assert "is at an edge" in warned[0] and "unequal search budget" in warned[1]
    # Again from the file, which lacks the third trial: nothing is done twice.
    flow.compare_contexts.fn(experiment, tmp_path)
    again = tables(tmp_path)
    assert all(again[name].equals(rows[name]) for name in rows)


@pytest.mark.usefixtures("alone")
def test_what_another_process_adds_meanwhile_is_kept_and_trained(tmp_path, monkeypatch):
    file, wider = tmp_path / "sweeping.toml", tmp_path / "wider.toml"
    file.write_text(SWEEPING, "utf-8")
    added = SWEEPING[SWEEPING.index("[conditions.step_aligned]") :]
    wider.write_text(SWEEPING + added.replace("step_aligned", "answer_only"), "utf-8")
    choose, others = flow.choose, [load_experiment(wider)]

    def choose_beside(base):
        if others:  # once, before the grid is extended
            joined = others.pop().part_of(stored_settings(base))
            store_grown(base_run(base.session, joined))
        return choose(base)

    monkeypatch.setattr(flow, "choose", choose_beside)
    experiment = load_experiment(file)
    flow.compare_contexts.fn(experiment, tmp_path)
    rows = tables(tmp_path)
    stored = Experiment.model_validate_json(rows["experiments"]["config"][0])
    assert {THIRD, "answer_only"} <= stored.conditions.keys()
    assert stored.added.conditions == ("answer_only",)
    assert {THIRD, "answer_only"} <= {*rows["updates"]["condition"]}
