import pytest

from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.store.sql_views import VIEWS
from tests.helpers.example import EXPERIMENT, critique, fill, lineage

CHOSEN = {"grpo": 2, "reference": 2, "step_aligned": 4}  # best on validation, the earliest if tied


def policy(condition, seed, round_):
    return lineage(condition, seed) | {
        "policy_id": f"{condition}/{seed}/{round_}", "parent_id": None, "step": 3 * round_,
        "round": round_, "kind": "full", "path": None, "sha256": "0",
    }  # fmt: skip


def update(condition, seed, round_):
    numbers = dict.fromkeys(TABLES["updates"].dtypes, 1)
    return numbers | lineage(condition, seed) | {
        "update_id": f"{condition}/{seed}/{round_}", "policy_id": "p", "round": round_,
        "seconds": 1.5,
    }  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb"))
    train = store.rows("rollouts", purpose="train", condition="step_aligned").sort("rollout_id")
    wrong = [row for row in train.to_dicts() if not row["correct"]]
    right = [row for row in train.to_dicts() if row["correct"]]
    steps = [critique(row, step) for row, step in zip(wrong, (1, 2, 2, 2), strict=True)]
    steps += [critique(row, None) for row in right[1:]] + [critique(right[0], 7, valid=False)]
    runs = [(name, seed) for name in CHOSEN for seed in EXPERIMENT.seeds]
    store.append_missing(
        critiques=TABLES["critiques"].frame(steps),
        policies=TABLES["policies"].frame(
            [policy("base", 0, 0)] + [policy(*run, round_) for run in runs for round_ in (2, 4)]
        ),
        updates=TABLES["updates"].frame([update(*run, n) for run in runs for n in range(4)]),
    )
    return store


def rows(store, view, columns, **equals):
    where = " AND ".join(f"{name} = ${name}" for name in equals) or "true"
    found = store.query(f"SELECT {columns} FROM {view} WHERE {where}", equals).rows()
    return [tuple(pytest.approx(v) if isinstance(v, float) else v for v in row) for row in found]


@pytest.mark.parametrize("view", VIEWS.values(), ids=lambda view: view.name)
def test_the_columns_are_those_that_are_documented(store, view):
    assert store.query(f"FROM {view.name}").columns == list(view.columns)


def test_accuracy_by_step(store):
    # Both seeds have 4 of 6 right after round 2 and 5 of 6 after round 4; three steps a round.
    columns = "round, step, seeds, avg_at_k, sampled_tokens"
    found = rows(store, "accuracy_by_step", columns, condition="step_aligned", split="test")
    assert found == [(2, 6, 2, 4 / 6, 200.0), (4, 12, 2, 5 / 6, 400.0)]


def test_worst_problems(store):
    # After round 4 the one wrong sample of six is the second of the third problem, in both seeds.
    columns = "problem_id, samples, accuracy, wrong_answer"
    found = rows(store, "worst_problems", columns, condition="step_aligned", split="test")
    assert found == [("test2", 4, 0.5, "38"), ("test0", 4, 1.0, None), ("test1", 4, 1.0, None)]
    # The base has the first samples of the first two problems right.
    found = rows(store, "worst_problems", columns, condition="base", split="test")
    assert found == [("test2", 2, 0.0, "38"), ("test0", 2, 0.5, "38"), ("test1", 2, 0.5, "38")]


def test_cost_per_point(store):
    # The base has 2 of 6. step_aligned: 5 of 6 at round 4, a gain of 50 points, for 400 solver
    # tokens, four critiques of 30 tokens at 0.25 and four steps of 1.5 s a seed. grpo: 3 of 6 at
    # round 2.
    columns = "seeds, gain, sampled_tokens, critic_tokens, critic_cost, train_seconds, " + (
        "sampled_tokens_per_point, critic_tokens_per_point"
    )
    found = rows(store, "cost_per_point", columns, condition="step_aligned")
    assert found == [(2, 50.0, 400.0, 120.0, 1.0, 6.0, 8.0, 2.4)]
    found = rows(store, "cost_per_point", columns, condition="grpo")
    assert found == [(2, 100 / 6, 200.0, 0.0, 0.0, 3.0, 12.0, 0.0)]


def test_training_health(store):
    # Two seeds with four train rollouts each; the critique of a right one is refused. Only
    # conditions that distil have contexts, and `fill` gives one to every rollout. All numbers of
    # the updates are 1, so each seed's four steps have a group without a signal each.
    columns = "rollouts, cut_off, ill_formed, refused, left_out, flat_groups"
    found = rows(store, "training_health", columns, condition="step_aligned")
    assert found == [(8, 0.0, 0.0, 1, 0, 8)]
    found = rows(store, "training_health", columns, condition="grpo")
    assert found == [(8, 0.0, 0.0, 0, 0, 8)]


def test_objected_tokens(store):
    # Under `reference` the answer has -1.2 in all eight rollouts. Under `step_aligned` each token
    # of the wrong step has -2.3 in the four wrong ones, and 0.15 in the others.
    columns = "tokens, objected, advantage, objection"
    found = rows(store, "objected_tokens", columns, context="reference")
    assert found[0] == (8, 8, -1.2, -9.6)
    found = rows(store, "objected_tokens", columns, context="step_aligned")
    assert found[:5] == 5 * [(8, 4, (0.15 - 2.3) / 2, -9.2)]


def test_failing_steps(store):
    # One fails at step 1, three at step 2; the critique that is not valid does not count.
    found = rows(store, "failing_steps", "step, rollouts, share", condition="step_aligned")
    assert found == [(1, 1, 0.25), (2, 3, 0.75)]
