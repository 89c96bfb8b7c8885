from itertools import accumulate

import polars as pl
import pytest

from sdcore.analysis.localisation import MEASURES, differences, measures, with_errors
from sdcore.config import EvaluationConfig
from sdcore.traces import token_offsets
from tests.helpers.families import byte_bpe, unigram

pytestmark = pytest.mark.usefixtures("two_are_enough")
SETTINGS = EvaluationConfig(resamples=1000)


def rollout(name, problem, correct, corrected, *tokens, context="c"):
    """Token rows from triples of text, region and advantage; the student's log-prob is -1."""
    text = "".join(token for token, _, _ in tokens)
    starts = accumulate((len(token) for token, _, _ in tokens), initial=0)
    rows = [
        {
            "position": position, "start": start, "token": token, "region": region,
            "advantage": float(advantage),
            "kl": 1.0 if position == 0 else 0.25,
            "student_logprob": -1.0, "teacher_logprob": -1.0 + advantage,
        }
        for position, (start, (token, region, advantage)) in enumerate(zip(starts, tokens))
    ]  # fmt: skip
    constants = {"context": context, "rollout_id": name, "problem_id": problem}
    constants |= {"correct": correct, "text": text, "corrected": corrected}
    return pl.DataFrame(
        [row | constants for row in rows], schema_overrides={"corrected": pl.String}
    )


A = [("1+1=2", "before", 0.1), (";", "tag", 3), ("2+2=", "at", 0), ("5", "at", -2), (";", "tag", 3)]
B = [("3+3=", "at", 0), ("7", "at", 0.5), (";", "tag", -3)]
C = [("1+1=2", "before", -0.2), (";", "tag", 0)]
TOKENS = with_errors(
    pl.concat(
        [
            rollout("a", "p", False, "1+1=2;2+2=4;", *A),
            rollout("b", "q", False, "3+3=6;", *B),
            rollout("c", "q", True, "1+1=2;", *C),
        ]
    )
)
SILENT = with_errors(
    pl.concat(
        [
            rollout("a", "p", False, "1+1=2;2+2=4;", *[(t, r, 0) for t, r, _ in A], context="d"),
            rollout("c", "q", True, "1+1=2;", *[(t, r, 0) for t, r, _ in C], context="d"),
        ]
    )
)


def by_measure(frame, context="c"):
    rows = frame.filter(context=context).iter_rows(named=True)
    return {row["measure"]: row for row in rows}


def test_the_error_is_the_token_where_the_trace_leaves_the_corrected_one():
    assert TOKENS.filter("error").select("rollout_id", "token").rows() == [("a", "5"), ("b", "7")]


@pytest.mark.parametrize(
    "corrected",
    [
        None,  # the critique was not valid
        "8",  # leaves it in a token of the step before, which is not the wrong one
        "1+1=2;2+2=5;",  # does not leave it at all
    ],
)
def test_where_no_token_of_the_wrong_step_leaves_it_there_is_no_error(corrected):
    assert not with_errors(rollout("a", "p", False, corrected, *A))["error"].any()


def test_an_error_within_a_token_is_that_token():
    tokens = [("1+1=2;", "before", 0), ("2+2=51", "at", 0)]
    found = with_errors(rollout("a", "p", False, "1+1=2;2+2=4", *tokens))
    assert found["error"].to_list() == [False, True]


@pytest.mark.parametrize(
    ("made", "text", "corrected", "error"),
    [
        # √ ∑ ≠ are three bytes: three tokens share one character each before the error.
        (byte_bpe, "√9≠4;2+2=5", "√9≠4;2+2=4", "5"),
        (byte_bpe, "½+½=1;2²÷2≈3", "½+½=1;2²÷2≈2", "3"),
        (unigram, "∑≠√;1=2", "∑≠√;1=1", "2"),
        (byte_bpe, "1=1;x=√", "1=1;x=∑", "√"),  # E2 88 9A and E2 88 91: the third token
        (byte_bpe, "1=1;x=½", "1=1;x=é", "½"),  # C2 BD and C3 A9: the first
    ],
)
def test_characters_split_over_tokens_do_not_move_the_error(made, text, corrected, error):
    tokenizer = made(None)
    ids = tokenizer.encode(text, add_special_tokens=False)
    offsets = token_offsets(tokenizer, ids)
    assert len(ids) > len(text)
    wrong = text.index(";") + 1
    rows = pl.DataFrame(
        [
            {
                "position": position, "token": text[start:end], "start": start,
                "region": "at" if start >= wrong else "before", "context": "c", "rollout_id": "a",
                "problem_id": "p", "correct": False, "text": text, "corrected": corrected,
            }
            for position, (start, end) in enumerate(offsets)
        ]
    )  # fmt: skip
    found = with_errors(rows).filter("error")
    assert found["token"].to_list() == [error]
    assert found["start"].to_list() == [text.rindex(error)]
    shared = rows.filter(start=text.rindex(error))
    assert found["position"][0] - shared["position"][0] == {"√": 2}.get(error, 0)


def test_measures_of_hand_made_rollouts():
    """At: 0, -2, 0, 0.5. AUC: of these four against the one other step token, 0.1, three win.
    Error against 0.1 and 0 of `a` and 0 of `b`: -2 wins 3 of 3 and 0.5 none of 3."""
    found = by_measure(measures(TOKENS, SETTINGS))
    assert {name: row["value"] for name, row in found.items()} == pytest.approx(
        {
            "auc": 3 / 4, "error_auc": 3 / 6,
            "before": 0.1, "at": -1.5 / 4,
            "error": (-2 + 0.5) / 2, "copied": 1 / 2,
            "error_student": 0.36788, "error_teacher": (0.04979 + 0.60653) / 2,
            "correct": -0.1, "negative_share": 1 / 2,
            "kl": (3 * 1 + 7 * 0.25) / 10, "first_kl": 1,
        },
        abs=1e-5,
    )  # fmt: skip
    # Two problems: p alone has 0 and -2 there, q alone 0 and 0.5.
    assert (found["at"]["low"], found["at"]["high"]) == (-1, 0.25)
    assert (found["at"]["tokens"], found["at"]["rollouts"]) == (4, 2)


def test_measures_come_in_their_order_and_all_are_explained():
    names = measures(TOKENS, SETTINGS)["measure"].to_list()
    assert names == [name for name in MEASURES if name in names]
    assert set(MEASURES) - set(names) == {"after"}  # no rollout here has a step after its error


def test_samples_of_one_problem_are_resampled_together():
    """Twice the same rollout of the same problem tells no more than once."""
    twice = pl.concat([TOKENS, TOKENS.with_columns(rollout_id=pl.col("rollout_id") + "'")])
    once, both = (by_measure(measures(each, SETTINGS)) for each in (TOKENS, twice))
    for name in ("at", "error", "auc"):
        for end in ("value", "low", "high"):
            assert both[name][end] == pytest.approx(once[name][end])


def test_differences_are_on_shared_rollouts():
    """Only `a` and `c` are shared. Both AUCs are 1 against 0.5 (all ties): 0 and -2 are below 0.1,
    and -2, the error, is below 0.1 and 0."""
    found = by_measure(differences(pl.concat([TOKENS, SILENT]), "c", SETTINGS), "d")
    assert {name: row["value"] for name, row in found.items()} == pytest.approx(
        {"auc": 0.5, "error_auc": 0.5, "before": 0.1, "at": -1, "error": -2, "negative_share": 0.5}
    )
    assert found["at"]["rollouts"] == 1


def test_a_difference_is_paired():
    """A constant gap has no uncertainty, however much the rollouts differ."""
    moved = TOKENS.with_columns(context=pl.lit("d"), advantage=pl.col("advantage") - 0.3)
    found = by_measure(differences(pl.concat([TOKENS, moved]), "c", SETTINGS), "d")
    for name in ("before", "at", "error"):
        row = found[name]
        assert [row[end] for end in ("value", "low", "high")][:1] == pytest.approx([0.3])
    assert (found["at"]["low"], found["at"]["high"]) == pytest.approx((0.3, 0.3))
    assert (found["auc"]["low"], found["auc"]["high"]) == (0, 0)


def test_where_all_is_the_error_nothing_tells_it_from_other_tokens():
    """Traces of a single step, and of a single token, have no AUC, and so no difference of it."""
    step, token = ([("3+3=", "at", 0), ("7", "at", -1)], [("7", "at", -1)])
    for tokens, corrected, known in ((step, "3+3=6", {"error_auc"}), (token, "6", set())):
        both = with_errors(
            pl.concat(rollout("a", "p", False, corrected, *tokens, context=name) for name in "cd")
        )
        found, gaps = measures(both, SETTINGS), differences(both, "c", SETTINGS)
        assert {name for name in found["measure"] if "auc" in name} == known
        assert {name for name in gaps["measure"] if "auc" in name} == known
        assert not found["value"].is_nan().any()


def test_unjudged_rollouts_have_no_place():
    unjudged = TOKENS.with_columns(region=pl.lit("unjudged"), error=False, correct=False)
    assert set(measures(unjudged, SETTINGS)["measure"]) == {"kl", "first_kl"}
