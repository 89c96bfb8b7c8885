import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.problems.duplicates import (
    LONG,
    near_duplicates,
    normalised,
    overlapping,
    word_runs,
)

TOM = "Tom has 12 red apples and buys 5 more green apples at the market. How many has he now?"


def test_normalised_texts_differ_in_words_only():
    assert normalised("  Tom has\n12 Apples ") == normalised("tom HAS 12\tapples")
    assert normalised("Tom has 12 apples") != normalised("Tom has 13 apples")


def test_word_runs_by_hand():
    assert word_runs("One two, three four!", 3) == {"one two three", "two three four"}
    assert word_runs("One two", 3) == {"one two"}
    assert word_runs("+ ?", 3) == {"+ ?"}


@pytest.mark.parametrize(
    ("other", "answer", "found"),
    [
        (TOM.replace("market", "shop"), "17", True),
        (TOM.upper(), "17", True),
        (TOM.replace("12", "13"), "17", False),  # another number is another problem
        (TOM.replace("market", "shop"), "18", False),  # and so is another answer
        ("Ann paid 12 coins for 5 pens. How many coins has she left of her purse?", "17", False),
    ],
)
def test_near_duplicates_have_the_same_numbers_answer_and_nearly_the_same_words(
    other, answer, found
):
    # 19 words are 15 runs of five, and the changed word is in 5 of them: 10 of 20 are shared
    problems = [("Other?", "1"), (TOM, "17"), (other, answer)]
    assert near_duplicates(problems, 0.5) == ({2: 1} if found else {})


def test_near_duplicates_reach_the_bound():
    problems = [("a b c d e f g h", "1"), ("a b c d e f g i", "1")]
    # runs of five: abcde bcdef cdefg defgh against abcde bcdef cdefg defgi: 3 of 5
    assert near_duplicates(problems, 0.6) == {1: 0}
    assert near_duplicates(problems, 0.61) == {}
    assert near_duplicates([*problems[:1], *problems[:1]], 1.01) == {}


def test_a_near_duplicate_is_compared_with_what_was_kept():
    drifting = ["a b c d e f g h" + " x" * n for n in range(3)]
    # 4 runs; the second adds one (4 of 5 are shared), the third two (4 of 6 with the first).
    assert near_duplicates([(text, "1") for text in drifting], 0.8) == {1: 0}


def test_many_questions_in_one_template_are_not_compared_with_each_other_for_ever():
    template = "Find the number that comes next in the list of letters {}?"
    names = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(400)]
    problems = [(template.format(name), "1") for name in names]
    assert near_duplicates([*problems, problems[0]], 1.0) == {400: 0}


def test_overlap_is_the_share_of_a_texts_own_runs_of_eight_words():
    long = " ".join(f"w{n}" for n in range(20))  # 13 runs
    half = " ".join(f"w{n}" for n in range(14)) + " " + " ".join(f"v{n}" for n in range(6))
    # half shares w0..w13 with long: 7 of its own 13 runs
    assert overlapping([half], ["else", long], 7 / 13) == {0: 1}
    assert overlapping([half], [long], 7.01 / 13) == {}
    part = " ".join(f"w{n}" for n in range(3, 12))
    assert overlapping([part], [long], 1.0) == {0: 0}
    assert overlapping([long], [part], 1.0) == {}


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=24).map(" ".join), max_size=8),
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=24).map(" ".join), max_size=8),
    st.sampled_from([0.05, 0.3, 0.5, 0.7, 1.0, 1.1]),
)
def test_overlap_is_what_comparing_all_with_all_finds(texts, others, bound):
    shares = [
        [
            len(word_runs(text, LONG) & word_runs(other, LONG)) / len(word_runs(text, LONG))
            for other in others
        ]
        for text in texts
    ]
    expected = {i for i, row in enumerate(shares) if any(share >= bound for share in row)}
    found = overlapping(texts, others, bound)
    assert found.keys() == expected
    assert all(shares[index][place] >= bound for index, place in found.items())


def test_overlap_names_the_text_that_most_is_shared_with():
    text = " ".join(f"w{n}" for n in range(12))
    others = [text[:30], text, text]
    assert overlapping([text], others, 0.1) == {0: 1}
    assert overlapping([text], [], 0.1) == {}
