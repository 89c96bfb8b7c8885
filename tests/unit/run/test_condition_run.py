"""What is known of a condition and seed, from the experiment and from what is stored."""

from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdcore.config import Experiment
from sdcore.errors import ConfigError, StoreError
from sdcore.schedule import PROBES
from sdcore.store.database import Store
from sdcore.store.schema import TABLES, content_key
from tasks.run.condition_run import (
    ConditionRun,
    StoredPolicy,
    base_run,
    condition_runs,
    trained_runs,
)
from tests.helpers.example import EXPERIMENT, policy, problem, rollout, run_row

ID = EXPERIMENT.experiment_id


class Models:
    """Positions that the named model has, and who asked for its tokenizer."""

    def __init__(self, positions=None):
        self.positions, self.asked = positions, []

    def context_length(self, name):
        return self.positions

    def tokenizer(self, name, day):
        self.asked.append((name, day))
        return "a tokenizer"


@pytest.fixture
def session(tmp_path):
    with Store(tmp_path / "sdcore.duckdb") as store:
        yield SimpleNamespace(root=tmp_path, store=store, models=Models())


@pytest.fixture
def run(session):
    return ConditionRun(session, EXPERIMENT, "reference", 1)


def changed(**settings):
    return Experiment.model_validate(EXPERIMENT.model_dump(mode="json") | settings)


def keep(store, **rows):
    store.append_missing(**{name: TABLES[name].frame(each) for name, each in rows.items()})


def test_names_and_places(run, tmp_path):
    assert (run.label, run.base.label) == ("reference/seed-1", "base")
    assert run.columns == {"experiment_id": ID, "condition": "reference", "seed": 1}
    assert run.base.columns == {"experiment_id": ID, "condition": "base", "seed": 0}
    assert run.settings.context == "reference" and run.root == tmp_path
    folder = tmp_path / "checkpoints" / ID / "reference" / "seed-1"
    assert (run.folder, run.checkpoint(12)) == (folder, folder / "round-0012")
    stored = StoredPolicy(**policy("grpo", 0, 3))
    assert stored.checkpoint == Path("checkpoints", ID, "grpo", "seed-0", "round-0003")


def test_a_key_is_of_the_run_and_of_what_is_named(run, session):
    assert run.key("a", 2) == content_key(ID, "reference", 1, "a", 2)
    other = ConditionRun(session, EXPERIMENT, "reference", 0)
    assert len({run.key("a"), run.key("b"), run.key(), other.key("a")}) == 4


def test_the_day_of_the_prompts_is_that_of_the_first_start(run, session):
    today = {datetime.now(UTC).date()}
    unknown = run.prompt_day
    assert unknown in today | {datetime.now(UTC).date()}
    other = run_row() | {"experiment_id": "other", "created_at": datetime(2020, 1, 1)}
    keep(run.store, experiments=[other, run_row()])
    started = ConditionRun(session, EXPERIMENT, "reference", 1)
    assert started.prompt_day == date(2026, 1, 2)
    assert started.tokenizer == started.tokenizer == "a tokenizer"
    assert session.models.asked == [("builtin:tiny-solver", date(2026, 1, 2))]


@pytest.mark.parametrize(
    ("positions", "engine", "expected"),
    [
        (None, {}, None), (200, {}, 200),
        (200, {"kind": "vllm", "context_length": 150}, 150),
        (100, {"kind": "vllm", "context_length": 150}, 100),
        (None, {"kind": "vllm", "context_length": 150}, 150),
        (200, {"kind": "vllm"}, 200),
    ],
)  # fmt: skip
def test_the_shorter_of_model_and_server_bounds_a_sample(session, positions, engine, expected):
    session.models.positions = positions
    run = ConditionRun(session, changed(engine=engine), "reference", 1)
    assert (run.context_length, run.sampled_length) == (positions, expected)


def test_problems_of_a_split_are_in_order_and_of_this_experiment(run):
    rows = [problem(f"t{place}", "train", place) for place in (2, 0, 1)]
    other = problem("t9", "train", 9) | {"experiment_id": "other"}
    keep(run.store, problems=[*rows, other, problem("v", "validation", 0)])
    assert run.train_problems["problem_id"].to_list() == ["t0", "t1", "t2"]
    assert run.problems("validation")["problem_id"].to_list() == ["v"]
    assert run.candidates("test").is_empty()


def test_with_a_band_the_first_in_it_are_taken(session):
    problems = EXPERIMENT.problems.model_dump(mode="json") | {"band": {"samples": 4}}
    run = ConditionRun(session, changed(problems=problems), "reference", 1)  # wants two
    run_id = run.experiment.experiment_id
    rows = [problem(f"t{n}", "train", n) | {"experiment_id": run_id} for n in (4, 3, 2, 1, 0)]
    measured = dict.fromkeys(TABLES["difficulties"].dtypes, 0) | {"policy_id": "p"}
    bands = [
        measured | {"experiment_id": name, "problem_id": f"t{n}", "in_band": inside,
                    "critic_solves": None}
        for name, n, inside in [
            (run_id, 0, False), (run_id, 1, True), (run_id, 2, True), (run_id, 3, True),
            ("other", 0, True),
        ]
    ]  # fmt: skip
    keep(run.store, problems=rows, difficulties=bands)
    assert run.problems("train")["problem_id"].to_list() == ["t1", "t2"]
    assert len(run.candidates("train")) == 5


def test_probes_are_the_first_validation_rollouts_of_the_base(run):
    # 18 problems with two samples each: the first samples of 16 problems, in order of their names.
    rows = [
        rollout("base", 0, purpose, round_, f"p{n:02}", sample, correct=True)
        for purpose, round_ in (("validation", 0), ("test", 0), ("validation", 2))
        for n in reversed(range(18))
        for sample in (1, 0)
    ]
    trained = rollout("reference", 0, "validation", 0, "p00", 0, correct=True)
    keep(run.store, rollouts=[*rows, trained])
    expected = {row["rollout_id"]: row["problem_id"] for row in rows
                if row["purpose"] == "validation" and row["round"] == 0
                and row["sample_index"] == 0}  # fmt: skip
    assert PROBES == 16
    assert [expected[name] for name in run.probes["rollout_id"]] == [f"p{n:02}" for n in range(16)]
    assert run.probes.columns == ["rollout_id", "prompt_ids", "response_ids", "logprobs"]


def test_the_policy_after_no_round_is_the_base(run):
    keep(run.store, policies=[policy("base", 0, 0), policy("reference", 0, 2),
                              policy("reference", 1, 2)])  # fmt: skip
    assert (run.policy(0).policy_id, run.policy(2).policy_id) == ("base/0/0", "reference/1/2")
    with pytest.raises(StoreError, match="not stored") as caught:
        run.policy(3)
    assert (caught.value.got, caught.value.expected) == ("0 rows", "1")
    assert caught.value.where == f"{run.columns} after 3 rounds" and caught.value.fix


def test_runs_train_seed_by_seed_in_the_order_of_the_conditions(session):
    labels = [run.label for run in trained_runs(base_run(session, EXPERIMENT))]
    names = ("grpo", "reference", "step_aligned")
    assert labels == [f"{name}/seed-{seed}" for seed in (0, 1) for name in names]


def test_folders_that_are_no_checkpoints_are_left_alone(run):
    for name in ("round-0004", "round-12345", "round-0004 (copy)", "round-x", ".round-0005"):
        (run.folder / name).mkdir(parents=True)
    assert run.checkpoints() == {n: run.checkpoint(n) for n in (4, 12345)}


def test_runs_of_a_condition(session):
    def labels(condition, seed):
        return [run.label for run in condition_runs(session, EXPERIMENT, condition, seed)]

    assert labels("grpo", None) == ["grpo/seed-0", "grpo/seed-1"]
    assert labels("grpo", 1) == ["grpo/seed-1"]
    assert labels("base", None) == labels("base", 1) == ["base"]
    for condition, seed in (("gpro", 0), ("grpo", 2), ("base", 2)):
        with pytest.raises(ConfigError, match="no such condition or seed") as caught:
            labels(condition, seed)
        assert caught.value.got == f"{condition}, seed {seed}"
        assert caught.value.expected == "base, grpo, reference, step_aligned; seeds 0, 1"
