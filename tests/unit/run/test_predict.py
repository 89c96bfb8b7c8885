"""A finished run's gains beside what the preflight measured."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import polars as pl
import pytest

import tasks.predict
from flows import predict as flow
from sdcore.analysis.verdicts import Verdict
from sdcore.config import Experiment, Trial
from sdcore.errors import DataError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, run_row

DISTILL = {"objective": "distill", "learning_rate": 1e-3}
GAINS = {"reference": 0.1, "step_aligned": 0.2, "unaided": 0.0}
MEASURED = {"reference": 0.6, "step_aligned": 0.9, "none": 0.3, "none with own prompt": 0.4}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run, one of whose conditions shows the teacher no context."""
    contexts = {"reference": "reference", "step_aligned": "step_aligned", "unaided": "none"}
    conditions = {name: DISTILL | {"context": context} for name, context in contexts.items()}

    def made(**prompts):
        settings = EXPERIMENT.model_dump(mode="json") | {"conditions": conditions}
        experiment = Experiment.model_validate(settings | {"prompts": prompts})
        rows = [
            {
                "experiment_id": experiment.experiment_id, "condition": name, "baseline": "base",
                "metric": "avg_at_k", "budget": "epochs", "difference": gain, "low": gain - 0.1,
                "high": gain + 0.1, "covers": "problems and seeds", "seeds": 2, "caveat": None,
            }
            for name, gain in GAINS.items()
        ]  # fmt: skip
        store.append_missing(comparisons=TABLES["comparisons"].frame(rows))
        return SimpleNamespace(experiment=experiment, store=store, root=tmp_path, session=session)

    monkeypatch.setattr(tasks.predict, "loss_up_to_error", lambda _, taught: dict.fromkeys(taught))
    session = SimpleNamespace(tracking=lambda: nullcontext(Mock()))
    with Store(tmp_path / "sdcore.duckdb") as store:
        yield made


def compared(base, *contexts):
    """The rows of the conditions, where the preflight judges these contexts."""
    rows = [{"context": name, "measure": "teacher", "value": MEASURED[name]} for name in MEASURED]
    verdicts = tuple(Verdict(name, "localised", "") for name in contexts)
    found = SimpleNamespace(verdicts=verdicts, measures=pl.DataFrame(rows))
    conditions = tasks.predict.compare_with_gains.fn(base, found).conditions
    return {row["condition"]: row for row in conditions.to_dicts()}


def test_a_condition_whose_context_is_not_judged_is_left_out_and_named(run, capsys):
    rows = compared(run(), "reference", "step_aligned")
    assert [(name, row["training_gain"]) for name, row in rows.items()] == [
        ("reference", 0.1), ("step_aligned", 0.2),
    ]  # fmt: skip
    assert rows["step_aligned"]["score"] == pytest.approx(0.9 / 3)
    assert "left out" in (said := capsys.readouterr().err) and said.endswith("unaided\n")


def test_a_teachers_own_prompt_without_a_context_is_measured_as_such(run):
    rows = compared(
        run(teacher_system="Heed."), "reference", "step_aligned", "none with own prompt"
    )
    assert rows["unaided"]["context"] == "none with own prompt"
    assert rows["unaided"]["score"] == pytest.approx(0.4 / 3)


def test_a_single_condition_is_compared_with_nothing(run):
    with pytest.raises(DataError, match="1 trained conditions with a context"):
        compared(run(), "reference")


def test_a_trial_that_extends_its_grid_is_among_the_conditions(tmp_path, monkeypatch):
    conditions = {"reference": DISTILL | {"context": "reference", "learning_rate": [1e-4, 2e-4]}}
    settings = EXPERIMENT.model_dump(mode="json") | {"conditions": conditions}
    file = Experiment.model_validate(settings)
    trial = Trial(family="reference", values={"learning_rate": 4e-4}, extension=1)
    stored = run_row() | {
        "experiment_id": file.experiment_id,
        "config": file.with_trials({"further": trial}).model_dump_json(),
    }
    with Store(tmp_path / "sdcore.duckdb") as store:
        store.append_missing(experiments=TABLES["experiments"].frame([stored]))
    monkeypatch.setattr(flow, "diagnose", Mock())
    monkeypatch.setattr(flow, "tracked", lambda base: nullcontext())
    monkeypatch.setattr(flow, "compare_with_gains", lambda base, found: base.experiment)
    found = flow.predict.fn(file, tmp_path)
    assert found.conditions["further"].learning_rate == 4e-4
