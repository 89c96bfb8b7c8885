"""Wrong rollouts of two problems; tokens, signals and outcomes are chosen by hand."""

import polars as pl
import pytest

from sdcore.analysis.viability import asked, measures, of_branches
from sdcore.config import EvaluationConfig
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, lineage, rollout

SETTINGS = EvaluationConfig(resamples=200)
FROZEN = {
    "id": EXPERIMENT.experiment_id, "purpose": "diagnose", "problems": ["p0", "p1"], "rollouts": 2,
    "contexts": ["none", "reference"],
}  # fmt: skip
# Position, region and the teacher's probability of the rollout's own token.
TOKENS = [
    ("tag", 0.1), ("before", 0.2), ("before", 0.6), ("at", 0.1), ("tag", 0.9), ("at", 0.3),
    ("tag", 0.4), ("after", 0.01), ("answer", 0.2),
]  # fmt: skip


def signal(row, context, position, region, probability):
    return lineage("diagnose", 0) | {
        "rollout_id": row["rollout_id"], "context": context, "policy_id": row["policy_id"],
        "round": 0, "position": position, "token_id": 7, "token": "x", "start": position,
        "student_logprob": -1.0, "teacher_logprob": float(pl.Series([probability]).log()[0]),
        "advantage": -0.5, "kl": 0.1, "entropy": 0.2, "weight": None, "step": 1, "region": region,
    }  # fmt: skip


def filled(path, regions=TOKENS):
    rollouts = [
        rollout("diagnose", 0, "diagnose", 0, name, index, correct=index == 0)
        for name in FROZEN["problems"]
        for index in (0, 1)
    ]
    contexts = [
        lineage("diagnose", 0) | {
            "context_id": f"{row['rollout_id']} {name}", "rollout_id": row["rollout_id"],
            "context": name, "text": name, "critique_id": None, "teacher_prompt_ids": [1, 1],
        }
        for row in rollouts
        for name in ("none", "reference")
    ]  # fmt: skip
    signals = [
        signal(row, name, position, region, probability)
        for row in rollouts
        for name in ("none", "reference")
        for position, (region, probability) in enumerate(regions)
    ]
    store = Store(path / "sdcore.duckdb")
    store.append_missing(
        rollouts=TABLES["rollouts"].frame(rollouts),
        contexts=TABLES["contexts"].frame(contexts),
        token_signals=TABLES["token_signals"].frame(signals),
    )
    return store


def test_tokens_that_the_teacher_would_hardly_write_are_branched_at_by_place(tmp_path):
    planned = asked(filled(tmp_path), FROZEN, 99)
    assert set(planned["context"]) == {"reference"} and planned["rollout_id"].n_unique() == 2
    one = planned.filter(problem_id="p1").sort("position")
    # Of positions 0 to 8 those below a half; the tag within the wrong step is not among them.
    assert one["position"].to_list() == [0, 1, 3, 5, 6, 7, 8]
    assert one["place"].to_list() == ["before", "before", "at", "at", "after", "after", "after"]


def test_the_draw_is_limited_and_the_same_again(tmp_path):
    store = filled(tmp_path)
    few, all_ = asked(store, FROZEN, 2), asked(store, FROZEN, 99)
    assert few.group_by("rollout_id").len()["len"].to_list() == [2, 2]
    assert few.equals(asked(store, FROZEN, 2))
    key = ["rollout_id", "position"]
    assert len(few.join(all_, on=key, how="semi")) == 4
    assert not len(asked(store, FROZEN, 0))


def test_a_rollout_without_a_known_error_has_no_branch(tmp_path):
    unjudged = [("unjudged" if region in ("before", "at", "after") else region, p)
                for region, p in TOKENS]  # fmt: skip
    assert not len(asked(filled(tmp_path, unjudged), FROZEN, 99))


def branch(problem, place, correct, resampled, advantage, kl=0.0):
    return {
        "context": "reference", "rollout_id": problem, "problem_id": problem, "place": place,
        "advantage": advantage, "kl": kl, "entropy": 0.0, "correct": correct,
        "resampled_correct": resampled,
    }  # fmt: skip


def test_shares_differences_by_place_and_how_well_a_score_sees_them():
    found = of_branches(
        pl.DataFrame(
            [
                branch("p0", "before", False, True, -0.1, kl=3.0),
                branch("p0", "at", True, False, -2.0, kl=1.0),
                branch("p1", "at", True, True, -0.3, kl=2.0),
                branch("p1", "after", False, False, -1.0, kl=4.0),
            ]
        ),
        SETTINGS,
    )
    values = dict(found.select("measure", "value").iter_rows())
    assert values == pytest.approx(
        {
            "viable": 0.5, "resampled": 0.5, "viable_gain": 0.0,
            "viable_before": -1.0, "viable_at": 0.5, "viable_after": 0.0,
            # right ones have -advantage 2 and 0.3, wrong ones 0.1 and 1: three pairs of four
            "viable_auc_advantage": 0.75,
            # and KL 1 and 2 against 3 and 4: none
            "viable_auc_kl": 0.0,
            "viable_auc_entropy": 0.5,  # all are tied
        }
    )  # fmt: skip
    counts = dict(found.select("measure", "tokens").iter_rows())
    assert counts["viable"] == 4 and counts["viable_at"] == 2 and counts["viable_after"] == 1


@pytest.mark.usefixtures("two_are_enough")
def test_problems_whose_branches_all_end_wrong_count_too():
    found = of_branches(
        pl.DataFrame(
            [
                branch("p0", "at", False, False, -1.0),
                branch("p1", "at", True, False, -2.0),
                branch("p1", "at", False, False, -3.0),
                branch("p2", "at", True, False, -5.0),
                branch("p3", "after", False, False, -4.0),
            ]
        ),
        SETTINGS,
    )
    row = found.row(by_predicate=pl.col("measure") == "viable_auc_advantage", named=True)
    # 2 is above one of 1, 3, 4, and 5 above all of them: four pairs of six
    assert row["value"] == pytest.approx(4 / 6)
    assert row["low"] <= row["value"] <= row["high"]


def test_where_the_teacher_agrees_nothing_is_counted(tmp_path):
    store = filled(tmp_path)
    planned = asked(store, FROZEN, 99)
    assert not len(measures(store, planned, SETTINGS))  # nothing is stored
    rows = [
        lineage("diagnose", 0) | {
            "branch_id": f"{row['rollout_id']} {row['position']}", "forced_id": 7 if agrees else 8,
            "agrees": agrees, "sampling_seed": 1, "response_ids": [], "resampled_ids": [],
            "correct": None if agrees else True, "resampled_correct": None if agrees else False,
        }
        | {name: row[name] for name in
           ("policy_id", "rollout_id", "problem_id", "context", "position")}
        for row in planned.iter_rows(named=True)
        for agrees in [row["position"] != 3]
    ]  # fmt: skip
    store.append_missing(branches=TABLES["branches"].frame(rows))
    found = {row["measure"]: row for row in measures(store, planned, SETTINGS).to_dicts()}
    assert found["viable_at"]["value"] == 1 and found["viable_at"]["tokens"] == 2
    assert "viable_before" not in found and "viable_auc_advantage" not in found
