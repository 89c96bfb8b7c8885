import json

import pytest

from sdcore.config import Experiment
from sdcore.errors import DataError
from sdcore.reports.provenance import Change, against, lineage, since
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, problem, rollout, run_row

OTHER = Experiment.model_validate(
    EXPERIMENT.model_dump() | {"training": {"rounds": 5, "questions_per_round": 2}}
)


def rows(experiment, changes):
    """A base, a policy of round 1, its rollout, critique, context and score, in one run."""
    run = {"experiment_id": experiment.experiment_id, "condition": "step_aligned", "seed": 0}
    mark = experiment.experiment_id[-2:]
    policy = run | {"step": 1, "kind": "lora", "path": None, "hinted": None}
    base = policy | {
        "condition": "base",
        "policy_id": f"b{mark}",
        "parent_id": None,
        "round": 0,
        "sha256": "w0",
    }
    trained = {"policy_id": f"p{mark}", "parent_id": f"b{mark}", "round": 1, "sha256": "w1"}
    sample = (
        rollout("step_aligned", 0, "train", 1, "train0", 0, correct=False)
        | run
        | {
            "rollout_id": f"r{mark}",
            "policy_id": f"p{mark}",
        }
    )
    nothing = dict.fromkeys(TABLES["critiques"].dtypes)
    critique = (
        nothing
        | run
        | {
            "critique_id": f"k{mark}",
            "rollout_id": f"r{mark}",
            "critic": "oracle",
            "writer": "oracle",
            "valid": True,
            "attempts": 1,
            "prompt_tokens": 0,
            "tokens": 0,
            "cost": 0.0,
        }
    )
    context = run | {
        "context_id": f"c{mark}",
        "rollout_id": f"r{mark}",
        "context": "step_aligned",
        "text": "t",
        "critique_id": f"k{mark}",
        "teacher_prompt_ids": [1, 2],
    }
    stored = {
        "experiments": [
            run_row()
            | {
                "experiment_id": experiment.experiment_id,
                "config": experiment.model_dump_json(),
            }
        ],
        "problems": [problem("train0", "train", 0) | {"experiment_id": run["experiment_id"]}],
        "policies": [base, policy | trained],
        "rollouts": [sample],
        "critiques": [critique],
        "contexts": [context],
    }
    for table, change in changes.items():
        stored[table][-1] |= change
    return {name: TABLES[name].frame(each) for name, each in stored.items()}  # fmt: skip


def fill(path, **changes):
    store = Store(path / "sdcore.duckdb")
    store.append_missing(**rows(EXPERIMENT, {}))
    store.append_missing(**rows(OTHER, changes))
    return store


def experiment_row(store, experiment):
    found = store.rows("experiments", experiment_id=experiment.experiment_id)
    return found.row(0, named=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("workspace"))


def test_a_row_is_followed_up_to_its_experiment(store):
    mark = EXPERIMENT.experiment_id[-2:]
    found = [(each.table, each.key) for each in lineage(store, "contexts", f"c{mark}")]
    assert found == [
        ("contexts", f"c{mark}"), ("critiques", f"k{mark}"), ("rollouts", f"r{mark}"),
        ("policies", f"p{mark}"), ("problems", "train0"), ("policies", f"b{mark}"),
        ("experiments", EXPERIMENT.experiment_id),
    ]  # fmt: skip
    rollout = lineage(store, "rollouts", f"r{mark}")[0]
    assert rollout.inputs["round"] == "1" and rollout.inputs["prompt_ids"].startswith("1 ids, ")


def test_nothing_has_changed_since_where_all_is_equal(store):
    found = lineage(store, "rollouts", f"r{EXPERIMENT.experiment_id[-2:]}")
    assert since(found, experiment_row(store, EXPERIMENT), "w0") == []


def test_what_has_changed_since_is_named(store):
    found = lineage(store, "rollouts", f"r{EXPERIMENT.experiment_id[-2:]}")
    now = experiment_row(store, OTHER) | {"code_version": "0.2+def"}
    now |= {"libraries": json.dumps({"torch": "2.14.0"})}
    assert since(found, now, "w9") == [
        Change("settings", "training.rounds was 4, is 5"),
        Change("code", "code_version was 0.1+abc, is 0.2+def"),
        Change("libraries", "torch was 2.13.0, is 2.14.0"),
        Change("weights", "sha256 was w0, is w9"),
    ]


def test_the_row_at_the_same_place_of_another_run_is_compared(tmp_path):
    store = fill(tmp_path, policies={"sha256": "w2"}, contexts={"teacher_prompt_ids": [1, 3]})
    found = lineage(store, "contexts", f"c{EXPERIMENT.experiment_id[-2:]}")
    settings, weights, prompt = against(store, found, experiment_row(store, OTHER))
    assert settings == Change("settings", "training.rounds was 4, is 5")
    assert weights == Change("policies", "sha256 was w1, is w2")
    assert prompt.where == "contexts" and prompt.what.startswith("teacher_prompt_ids was 2 ids, ")


def test_a_place_that_the_other_run_does_not_have_is_said(tmp_path):
    store = fill(tmp_path, rollouts={"sample_index": 1})
    found = lineage(store, "contexts", f"c{EXPERIMENT.experiment_id[-2:]}")
    missing = against(store, found, experiment_row(store, OTHER))[1:]
    assert [change.where for change in missing] == ["rollouts", "contexts", "critiques"]


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ("rollouts", "zz", "no keys start like this"),
        ("rollouts", "r", "2 keys start like this"),
        ("token_signals", "r", "ask for their rollout"),
    ],
)
def test_exactly_one_row_is_meant(store, table, key, message):
    with pytest.raises(DataError, match=message):
        lineage(store, table, key)
