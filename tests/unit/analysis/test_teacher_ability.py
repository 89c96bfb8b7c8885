"""Four problems with two rollouts each; what is right is chosen by hand."""

import polars as pl
import pytest

from sdcore.analysis.teacher_ability import asked, mask_of, measures
from sdcore.config import DistillConfig, EvaluationConfig
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, critique, lineage, rollout

PROBLEMS = ["p0", "p1", "p2", "p3"]
SETTINGS = EvaluationConfig(resamples=200)
FROZEN = {
    "id": EXPERIMENT.experiment_id, "purpose": "diagnose", "problems": PROBLEMS, "rollouts": 2,
    "contexts": ["none", "reference"],
}  # fmt: skip


def filled(path, contexts=("none", "reference")):
    """The first rollout of each problem is right, the second wrong from step 2 on."""
    rollouts = [
        rollout("diagnose", 0, "diagnose", 0, name, index, correct=index == 0)
        for name in PROBLEMS
        for index in (0, 1)
    ]
    seen = [
        lineage("diagnose", 0)
        | {
            "context_id": f"{row['rollout_id']} {name}", "rollout_id": row["rollout_id"],
            "context": name, "text": name, "critique_id": None, "teacher_prompt_ids": [1, 1],
        }
        for row in rollouts
        for name in contexts
    ]  # fmt: skip
    store = Store(path / "sdcore.duckdb")
    store.append_missing(
        rollouts=TABLES["rollouts"].frame(rollouts),
        contexts=TABLES["contexts"].frame(seen),
        critiques=TABLES["critiques"].frame(
            [critique(row, 2) | {"corrected": "c"} for row in rollouts if not row["correct"]]
        ),
    )
    return store


def sample(row, *, correct, reaction=None):
    of = ("context", "start", "rollout_id", "problem_id", "policy_id")
    return lineage("diagnose", 0) | {name: row[name] for name in of} | {
        "teacher_sample_id": f"{[row[name] for name in of]} {row['turn']}",
        "sample_index": row["turn"], "sampling_seed": 1, "prompt_ids": [1], "prefix_tokens": 0,
        "response_ids": [2, 3, 4], "text": "", "finish_reason": "stop", "answer": None,
        "reward": float(correct), "correct": correct, "well_formed": True, "reaction": reaction,
    }  # fmt: skip


def store_samples(store, samples):
    store.append_missing(teacher_samples=TABLES["teacher_samples"].frame(samples))


NO_TOKENS = pl.DataFrame(
    schema={
        "context": pl.String, "problem_id": pl.String, "rollout_id": pl.String,
        "position": pl.Int64, "region": pl.String, "kl": pl.Float64, "correct": pl.Boolean,
    }
)  # fmt: skip


def by_measure(frame, context):
    rows = frame.filter(context=context).iter_rows(named=True)
    return {row["measure"]: row for row in rows}


def test_the_rollouts_of_a_problem_take_turns(tmp_path):
    planned = asked(filled(tmp_path), FROZEN, 3)
    index = dict(planned.select("rollout_id", "sample_index").iter_rows())
    one = planned.filter(context="reference", problem_id="p1").sort("start", "turn")
    turns = [
        (row["start"], row["turn"], index[row["rollout_id"]]) for row in one.iter_rows(named=True)
    ]
    assert turns == [
        ("after_question", 1, 1),  # of the wrong rollout
        ("after_step", 0, 1), ("after_step", 1, 1), ("after_step", 2, 1),
        ("error", 0, 1), ("error", 1, 1), ("error", 2, 1),
        ("question", 0, 0), ("question", 1, 1), ("question", 2, 0),
        ("step", 0, 1), ("step", 1, 1), ("step", 2, 1),
    ]  # fmt: skip
    assert len(planned) == 2 * 4 * 13
    assert asked(filled(tmp_path / "again"), FROZEN, 0).is_empty()


def test_more_samples_keep_those_that_there_were(tmp_path):
    store, keys = filled(tmp_path), ["context", "start", "rollout_id", "turn"]
    few, many = (asked(store, FROZEN, count).select(keys) for count in (2, 5))
    assert len(many.join(few, on=keys, how="semi")) == len(few) == 2 * 4 * 9


def test_the_gain_is_the_paired_difference_of_the_problems(tmp_path):
    """Of two samples, right with the reference: 2, 2, 1, 0; without: 1, 0, 1, 0.

    Differences of the shares: 1/2, 1, 0, 0, so 3/8 on average. Their deviation is √(11/48)
    (squares 1/64 + 25/64 + 9/64 + 9/64 over 3), and t(.975, 3) = 3.1824: ± 3.1824 √(11/48) / 2.
    """
    store = filled(tmp_path)
    planned = asked(store, FROZEN, 2).filter(start="question")
    right = {"reference": (2, 2, 1, 0), "none": (1, 0, 1, 0)}
    store_samples(store, [
        sample(row, correct=row["turn"] < right[row["context"]][int(row["problem_id"][1])])
        for row in planned.iter_rows(named=True)
    ])  # fmt: skip
    found = measures(store, planned, NO_TOKENS, SETTINGS)
    rows, own = by_measure(found, "reference"), by_measure(found, "none")
    assert rows["teacher"]["value"] == 5 / 8 and rows["student"]["value"] == 1 / 4
    half = 3.18245 * (11 / 48) ** 0.5 / 2
    gain = rows["gain"]
    assert gain["value"] == 3 / 8
    assert gain["low"] == pytest.approx(3 / 8 - half, abs=1e-4)
    assert gain["high"] == pytest.approx(min(1, 3 / 8 + half), abs=1e-4)
    assert (gain["rollouts"], gain["tokens"]) == (8, 24)
    # the second sample of a problem shows the wrong rollout's context: right for p0 and p1
    assert rows["helped"]["value"] == 1 / 2
    assert own["teacher"]["value"] == 1 / 4 and "gain" not in own and "continued" not in own


def test_samples_beyond_those_asked_for_do_not_count(tmp_path):
    store = filled(tmp_path)
    planned, more = (asked(store, FROZEN, count) for count in (1, 3))
    store_samples(
        store, [sample(row, correct=row["turn"] == 0) for row in more.iter_rows(named=True)]
    )
    found = measures(store, planned, NO_TOKENS, SETTINGS)
    assert by_measure(found, "reference")["teacher"]["value"] == 1
    one = measures(store, asked(store, FROZEN | {"problems": ["p2"]}, 3), NO_TOKENS, SETTINGS)
    rows = by_measure(one, "reference")
    assert rows["teacher"]["value"] == pytest.approx(1 / 3) and rows["gain"]["rollouts"] == 3


def test_the_gain_of_a_mask_is_that_of_its_mixed_policy_on_wrong_rollouts(tmp_path):
    """Two samples each from the question and from the step, of which the problems' right ones are:

    student from the question 1, 0, 1, 0, so 1/2, 0, 1/2, 0. Until the error, one sample each (the
    other turn is the right rollout's): teacher 1, 1, 0, 1, student 1, 0, 0, 0. The gain is that of
    1/2, 1, -1/2, 1, so 1/2 with a deviation of √(1/2); the context adds 0, 1, 0, 1, so 1/2. The
    error's step: teacher 2, 1, 1, 0 and student 1, 1, 1, 1: the gain is 1/4, and nothing is added.
    """
    right = {
        ("none", "question"): (1, 0, 1, 0), ("none", "after_question"): (2, 0, 0, 0),
        ("reference", "after_question"): (2, 2, 0, 2), ("none", "after_step"): (1, 1, 1, 1),
        ("reference", "after_step"): (2, 1, 1, 0),
    }  # fmt: skip
    store = filled(tmp_path)
    planned = asked(store, FROZEN, 2)
    store_samples(store, [
        sample(row, correct=row["turn"] < right[kind][int(row["problem_id"][1])])
        for row in planned.iter_rows(named=True)
        if (kind := (row["context"], row["start"])) in right
    ])  # fmt: skip
    found = measures(store, planned, NO_TOKENS, SETTINGS)
    rows, own = by_measure(found, "reference"), by_measure(found, "none")
    assert rows["right_until_error"]["value"] == 3 / 4
    gain = rows["gain_until_error"]
    assert (gain["value"], gain["rollouts"], gain["high"]) == (1 / 2, 4, 1)
    assert gain["low"] == pytest.approx(1 / 2 - 3.18245 * 0.5**0.5 / 2, abs=1e-4)
    assert rows["added_until_error"]["value"] == 1 / 2
    assert (rows["gain_error"]["value"], rows["added_error"]["value"]) == (1 / 4, 0)
    assert rows["gain_error"]["rollouts"] == 8
    assert own["gain_until_error"]["value"] == 0 and own["gain_error"]["value"] == 1 / 4
    assert "added_error" not in own and "gain_after" not in rows


@pytest.mark.parametrize(
    ("tokens", "mask"),
    [
        ("all", "all"), ("until_error", "until_error"), ("error", "error"),
        ({"after": 0, "answer": 0}, "until_error"), ({"before": 0}, "from_error"),
        ({"before": 0, "at": 0, "after": 0.5}, "after"), ({"at": 3}, "all"),
        ({"before": 0, "after": 0}, None), ({"kind": "advantages"}, None),
        ({"kind": "positions"}, None),
    ],
)  # fmt: skip
def test_a_weighting_has_the_mask_of_its_regions(tokens, mask):
    condition = {"objective": "distill", "context": "c", "learning_rate": 1.0, "tokens": tokens}
    assert mask_of(DistillConfig.model_validate(condition).tokens) == mask


def test_reactions_are_shares_of_the_judged_continuations(tmp_path):
    """p0 repeats twice; p1 repairs once and repeats once; p2 ignores once; p3 is not judged."""
    store = filled(tmp_path)
    planned = asked(store, FROZEN, 2).filter(start="error", context="reference")
    told = {
        "p0": ("repeats", "repeats"), "p1": ("repairs", "repeats"), "p2": ("ignores", None),
        "p3": (None, None),
    }  # fmt: skip
    store_samples(store, [
        sample(row, correct=row["turn"] == 0, reaction=told[row["problem_id"]][row["turn"]])
        for row in planned.iter_rows(named=True)
    ])  # fmt: skip
    rows = by_measure(measures(store, planned, NO_TOKENS, SETTINGS), "reference")
    assert rows["continued"]["value"] == 1 / 2
    shares = [rows[name]["value"] for name in ("repeats", "repairs", "ignores")]
    assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 3])
    assert rows["repeats"]["rollouts"] == 5 and rows["continued"]["rollouts"] == 8


@pytest.mark.usefixtures("two_are_enough")
def test_the_kl_after_the_error_includes_tags_and_answer(tmp_path):
    """1 + 2 nats up to the error, 3 + 4 after it, in both problems: 7 of 10."""
    regions = {0: "before", 1: "at", 2: "tag", 3: "answer"}
    tokens = pl.DataFrame(
        [
            {
                "context": context, "problem_id": problem, "rollout_id": problem + str(correct),
                "position": place, "region": "before" if correct else region,
                "kl": place + 1.0 + 9 * correct, "correct": correct,
            }
            for context in ("none", "reference")
            for problem in ("p0", "p1")
            for correct in (False, True)
            for place, region in regions.items()
        ]
    )  # fmt: skip
    store = filled(tmp_path)
    found = measures(store, asked(store, FROZEN, 0), tokens, SETTINGS)
    assert found.drop("tokens").rows() == [("reference", "kl_after", 0.7, 0.7, 0.7, 2)]
