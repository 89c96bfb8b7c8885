from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.analysis.metrics import avg_at_k, maj_at_k, pass_at_k
from sdcore.errors import DataError


def test_avg_is_the_share_of_correct_samples():
    assert avg_at_k([[1, 0, 0, 1], [0, 0, 0, 0]]).tolist() == [0.5, 0]


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        ([1, 1, 2, 3], [1, 1, 0, 0], 1),  # 1 has two of four votes
        ([1, 1, 1, 7], [0, 0, 0, 1], 0),
        ([1, 1, 2, 2], [1, 1, 0, 0], 1 / 2),  # a tie of two, one of them correct
        ([1, 2, 3, 4], [0, 0, 1, 0], 1 / 4),  # a tie of four
        ([1, 1, 2, 2, 3], [0, 0, 0, 0, 1], 0),  # the correct one is not among the tied
        ([4], [1], 1),
        ([4], [0], 0),
    ],
)
def test_majority_shares_ties_fairly(answers, correct, expected):
    assert maj_at_k([answers], [correct]).tolist() == [expected]


def test_each_problem_has_its_own_majority():
    assert maj_at_k([[1, 1, 2], [5, 6, 6]], [[1, 1, 0], [1, 0, 0]]).tolist() == [1, 0]


def test_pass_at_k_is_the_mean_over_all_subsets():
    """Of the 6 pairs of 4 samples with 1 correct, 3 hold it; with 2 correct, 5 hold one."""
    found = pass_at_k([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], k=2)
    assert found.tolist() == pytest.approx([3 / 6, 5 / 6, 0, 1])


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_equals_brute_force(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    draws = list(combinations(correct, k))
    expected = sum(map(any, draws)) / len(draws)
    assert pass_at_k([correct], k)[0] == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(DataError, match="at least k samples"):
        pass_at_k([[1, 0, 0, 1]], k)
