import json
from itertools import combinations

import polars as pl
import pytest

from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.store.sql_views import VIEWS
from tests.helpers.example import EXPERIMENT, critique, fill, run_row, update

CHOSEN = {"grpo": 2, "reference": 2, "step_aligned": 4}  # best on validation, the earliest if tied


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb"))
    train = store.rows("rollouts", purpose="train", condition="step_aligned").sort("rollout_id")
    wrong = [row for row in train.to_dicts() if not row["correct"]]
    right = [row for row in train.to_dicts() if row["correct"]]
    steps = [critique(row, step) for row, step in zip(wrong, (1, 2, 2, 2), strict=True)]
    steps += [critique(row, None) for row in right[1:]] + [critique(right[0], 7, valid=False)]
    store.append_missing(critiques=TABLES["critiques"].frame(steps))
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


def test_rollouts_without_an_update_or_a_weight_are_left_out(tmp_path):
    # Eight rollouts: seed 0 has one in each of two updates, and one of them has no weight.
    store = fill(Store(tmp_path / "sdcore.duckdb"), idle=[("grpo", 0), ("grpo", 1)])
    late = [update("grpo", 0, 2), update("grpo", 0, 3, weightless=1)]
    store.append_missing(updates=TABLES["updates"].frame(late))
    assert rows(store, "training_health", "rollouts, left_out", condition="grpo") == [(8, 7)]


def test_a_flat_group_counts_once_however_many_steps_its_round_has(tmp_path):
    # Seed 0 has two steps in round 2 and one in round 3, seed 1 none: 1 + 3 groups. Its entropy
    # is 0.4 at the first of its steps, which is the fifth of the schedule, and 0.6 at the last.
    store = fill(Store(tmp_path / "sdcore.duckdb"), idle=[("grpo", 0), ("grpo", 1)])
    steps = [
        update("grpo", 0, 2, step=5, entropy=0.4),
        update("grpo", 0, 2, step=6, entropy=0.5) | {"update_id": "second"},
        update("grpo", 0, 3, step=7, entropy=0.6, zero_variance_groups=3),
    ]
    store.append_missing(updates=TABLES["updates"].frame(steps))
    columns = "flat_groups, entropy_first, entropy_last"
    assert rows(store, "training_health", columns, condition="grpo") == [(4, 0.4, 0.6)]


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """No seed of `reference` has an update, and GRPO's first one only from round 2 on."""
    idle = [("reference", 0), ("reference", 1), ("grpo", 0)]
    store = fill(Store(tmp_path_factory.mktemp("partly") / "sdcore.duckdb"), idle=idle)
    late = [update("grpo", 0, 2), update("grpo", 0, 3, grad_norm=0.0)]
    store.append_missing(updates=TABLES["updates"].frame(late))
    return store


def test_what_trained_nothing_has_a_share_in_training_health(partly):
    # Of GRPO's eight rounds, seed 0 trained in one: two have no update, one has no gradient.
    found = dict(rows(partly, "training_health", "condition, idle"))
    assert found == {"grpo": 3 / 8, "reference": 1.0, "step_aligned": 0.0}
    # Nothing of the reference was trained on, whatever contexts there are.
    assert rows(partly, "training_health", "rounds, flat_groups", condition="reference") == [(8, 0)]


def test_weights_that_no_update_has_changed_are_not_chosen(partly):
    # Validation ties or prefers GRPO's round 2, but seed 0 has only been trained after it.
    found = rows(partly, "chosen_checkpoints", "condition, seed, round", budget="epochs")
    assert found == [("grpo", 0, 4), ("grpo", 1, 2), ("step_aligned", 0, 4), ("step_aligned", 1, 4)]
    assert rows(partly, "cost_per_point", "condition") == [("grpo",), ("step_aligned",)]


def test_the_checkpoint_is_best_on_validation_and_the_earliest_of_equals(store):
    found = rows(store, "chosen_checkpoints", "condition, seed, round", budget="epochs")
    assert found == [(name, seed, CHOSEN[name]) for name in CHOSEN for seed in EXPERIMENT.seeds]


def test_at_equal_tokens_only_checkpoints_within_the_budget_compete(tmp_path):
    # The others sample 400 tokens in all, so 440 are allowed; step_aligned needs 800 for round 4.
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    dear = pl.when(pl.col("condition") == "step_aligned").then(2).otherwise(1)
    changed = store.rows("scores").with_columns(sampled_tokens=pl.col("sampled_tokens") * dear)
    store.replace(scores=changed)
    columns = "condition, round, mid_schedule"
    found = set(rows(store, "chosen_checkpoints", columns, budget="tokens"))
    assert found == {("grpo", 2, False), ("reference", 2, False), ("step_aligned", 2, True)}


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


def condition(context, **changes):
    settings = {"objective": "distill", "context": context, "learning_rate": 1e-3}
    return settings | {"tokens": {"kind": "all"}, "teacher": {"kind": "frozen"}} | changes


def test_feedback_gains_are_pairs_that_differ_in_one_thing(tmp_path):
    conditions = {
        "grpo": {"objective": "grpo", "learning_rate": 1e-3},
        "reference": condition("reference"),
        "aligned": condition("step_aligned", learning_rate=2e-3),
        "masked": condition("step_aligned", tokens={"kind": "until_error"}),
        "averaged": condition("step_aligned", teacher={"kind": "ema"}),
        "other": condition("other_reference"),
        "wrong": condition("wrong_hint"),
        "unaided": condition("none"),
    }
    names = ["base", *conditions]
    order = {name: place for place, name in enumerate(names)}
    run = run_row() | {"config": json.dumps({"conditions": conditions})}
    pairs = [
        {
            "experiment_id": run["experiment_id"], "condition": later, "baseline": earlier,
            "metric": "avg_at_k", "budget": "epochs", "covers": "problems and seeds", "seeds": 2,
            "caveat": None, "difference": order[later] - order[earlier],
            "low": order[later] - order[earlier] - 0.5, "high": order[later] - order[earlier] + 2,
        }
        for earlier, later in combinations(names, 2)
    ]  # fmt: skip
    made = Store(tmp_path / "sdcore.duckdb")
    made.append_missing(
        experiments=TABLES["experiments"].frame([run]),
        comparisons=TABLES["comparisons"].frame(pairs),
    )
    found = made.query(
        "SELECT added, condition, baseline, difference, low, high, rates_differ FROM feedback_gains"
    ).rows()
    # Conditions are compared with those before them in the file: a pair the other way round has
    # its signs changed, and its bounds exchanged.
    assert found == [
        ("any context", "other", "base", 6, 5.5, 8, False),
        ("any context", "other", "unaided", -2, -4, -1.5, False),
        ("any context", "wrong", "base", 7, 6.5, 9, False),
        ("any context", "wrong", "unaided", -1, -3, -0.5, False),
        ("right context", "reference", "other", -4, -6, -3.5, False),
        ("right context", "reference", "wrong", -5, -7, -4.5, False),
        ("aligned context", "aligned", "reference", 1, 0.5, 3, True),
        ("token mask", "masked", "aligned", 1, 0.5, 3, True),
    ]


def test_feedback_gains_of_a_stored_run(store):
    # At the last round five of six are right under step_aligned, three under reference.
    columns = "added, condition, baseline, difference, seeds"
    (row,) = rows(store, "feedback_gains", columns, metric="avg_at_k", budget="epochs")
    assert row == ("aligned context", "step_aligned", "reference", pytest.approx(1 / 3), 2)


def test_round_health(tmp_path):
    # Two rollouts of two tokens in rounds 0 and 3; of the two steps of round 3 the first counts.
    made = fill(Store(tmp_path / "sdcore.duckdb"))
    train = made.rows("rollouts", condition="reference", seed=0, purpose="train", round=3)
    broken = train.head(1).with_columns(well_formed=pl.lit(False), response_ids=[2, 3, 4, 5])
    steps = [
        update("reference", 0, 3, step=4, entropy=0.3, first_token_kl=0.2, base_drift=0.1),
        update("reference", 0, 3, step=5, entropy=9.0, first_token_kl=9.0, base_drift=9.0)
        | {"update_id": "second"},
    ]
    made.replace(rollouts=broken, updates=TABLES["updates"].frame(steps))
    columns = "round, rollouts, entropy, mean_length, format_rate, first_token_kl, base_drift"
    found = rows(made, "round_health", columns, condition="reference", seed=0)
    assert found == [(0, 2, 1, 2, 1, 1, 1), (3, 2, 0.3, 3, 0.5, 0.2, 0.1)]


def test_after_its_last_good_round_a_stopped_run_has_no_checkpoint(tmp_path):
    # step_aligned is best at round 4; its seed 0 was good until round 3, seed 1 never.
    made = fill(Store(tmp_path / "sdcore.duckdb"))
    stop = {"experiment_id": EXPERIMENT.experiment_id, "condition": "step_aligned", "round": 3,
            "sign": "format", "reason": "40%"}  # fmt: skip
    stops = [stop | {"seed": seed, "good_round": good} for seed, good in ((0, 3), (1, 0))]
    made.append_missing(stops=TABLES["stops"].frame(stops))
    columns = "condition, seed, round"
    chosen = rows(made, "chosen_checkpoints", columns, budget="epochs", condition="step_aligned")
    assert chosen == [("step_aligned", 0, 2)]


def test_a_stopped_run_does_not_set_the_budget_of_the_others(tmp_path):
    # All have sampled 400 tokens at round 4. GRPO ends at 200 in both seeds, stopped or not.
    made = fill(Store(tmp_path / "sdcore.duckdb"))
    made.supersede({"scores": "condition = 'grpo' AND round > $round"}, {"round": 2})
    last = "SELECT max(round) FROM chosen_checkpoints WHERE budget = 'tokens'"
    assert made.query(last).item() == 2
    stop = {"experiment_id": EXPERIMENT.experiment_id, "condition": "grpo", "round": 3,
            "good_round": 2, "sign": "format", "reason": "40%"}  # fmt: skip
    made.append_missing(
        stops=TABLES["stops"].frame([stop | {"seed": seed} for seed in EXPERIMENT.seeds])
    )
    assert made.query(last).item() == 4
