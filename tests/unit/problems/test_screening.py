import time
from decimal import Decimal

import pytest

from sdcore.config import ProblemsConfig
from sdcore.errors import ConfigError, DataError
from sdcore.problems import screening
from sdcore.problems.screening import LONGEST, screen
from sdcore.problems.sources import SpelledFloat

GOOD = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(3)]


def screened(rows, *, checks=None, **settings):
    config = ProblemsConfig(
        source="jsonl", path="p.jsonl", train=1, validation=1, test=1,
        checks={"bad_share": 1.0} | (checks or {}), **settings,
    )  # fmt: skip
    return screen(enumerate(rows, 1), config)


def test_good_rows_become_problems_in_order():
    problems, rejections = screened([{"question": " 1 + 1? ", "answer": 2.5, "solution": "s "}])
    assert not rejections
    assert problems[0].columns == {
        "problem_id": problems[0].problem_id, "question": "1 + 1?", "reference": "2.5",
        "solution": "s", "source": "p.jsonl, row 1",
    }  # fmt: skip


def test_a_database_s_exact_numbers_are_numbers():
    ((problem,), _) = screened([{"question": "x?", "answer": Decimal("2.50")}])
    assert problem.reference == "2.50"


@pytest.mark.parametrize(
    ("number", "reference"),
    [
        (0.00001, "0.00001"), (1e22, "1" + "0" * 22), (5.0, "5.0"), (-2.5e-7, "-0.00000025"),
        (SpelledFloat("1.50"), "1.50"), (SpelledFloat("1e-05"), "1e-05"),
        (10**400, "1" + "0" * 400), (Decimal("1E+3"), "1000"),
    ],
)  # fmt: skip
def test_a_number_is_spelt_as_in_its_source_or_without_exponent(number, reference):
    ((problem,), _) = screened([{"question": "x?", "answer": number}])
    assert problem.reference == reference


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not JSON (…): {nonsense", "not JSON"),
        ({"question": "x?"}, "no answer under 'answer'; the keys are question"),
        ({"question": "x?", "answer": None}, "no answer under 'answer'"),
        ({"question": " ", "answer": 1}, "the question under 'question' is empty"),
        ({"question": ["x"], "answer": 1}, "the question under 'question' is no text but list"),
        ({"question": "x?", "answer": float("nan")}, "the answer under 'answer' is nan"),
        ({"question": "x?", "answer": float("inf")}, "the answer under 'answer' is inf"),
        ({"question": "x?", "answer": True}, "the answer under 'answer' is no text but bool"),
        ({"question": "caf\ufffd?", "answer": 1}, "the question under 'question' has bytes"),
        ({"question": "x?", "answer": "5\ud800"}, "the answer under 'answer' has bytes"),
        ({"question": "x?", "answer": 1, "solution": ""}, "the solution under 'solution' is empty"),
        ({"question": "x?", "answer": r"\frac{1"}, "the answer cannot be parsed"),
        ({"question": "x" * 20_001, "answer": 1}, "the question has 20001 characters"),
        ({"question": "x?", "answer": "1" * 2**20}, "the answer has 1048576 characters"),
    ],
)
def test_a_bad_row_is_rejected_with_what_is_bad_and_the_rest_goes_on(row, reason):
    problems, rejections = screened([*GOOD[:2], row, *GOOD[2:]])
    assert [problem.number for problem in problems] == [1, 2, 4]
    assert [(each.number, each.kind) for each in rejections] == [(3, "bad")]
    columns = rejections[0].columns
    assert columns["reason"].startswith(reason)
    assert len(columns["excerpt"]) <= 200
    (columns["reason"] + columns["excerpt"]).encode()  # can be stored


def test_the_longest_texts_are_still_taken():
    row = {"question": "x " * (LONGEST["question"] // 2), "answer": 1, "solution": "s" * 200_000}
    assert len(screened([row])[0]) == 1


def test_a_named_solution_must_be_there_the_default_need_not():
    assert screened(GOOD, solution="worked")[0] == []
    assert [each.solution for each in screened(GOOD)[0]] == [None] * 3


def test_the_pattern_picks_the_answer_and_annotations_go():
    rows = [
        {"question": "Clips?", "answer": "Half of 48 is <<48/2=24>>24.\nSo 1.\n#### 1,000"},
        {"question": "Pens?", "answer": "it is 5"},
        {"question": "Cups?", "answer": "#### "},
    ]
    problems, rejections = screened(rows, solution="answer", answer_pattern=r"####\s*(.*)$")
    assert [(each.reference, each.solution) for each in problems] == [
        ("1,000", "Half of 48 is 24.\nSo 1.")
    ]
    assert [each.reason for each in rejections] == [
        "the answer does not fit problems.answer_pattern: it is 5",
        "the answer does not fit problems.answer_pattern: ####",
    ]


def test_a_solution_of_an_answer_line_alone_is_none():
    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in (1, 2)]
    pattern = r"####\s*(.*)$"
    problems, rejections = screened(rows, solution="answer", answer_pattern=pattern)
    reason = "the solution under 'answer' has nothing but an answer"
    assert problems == [] and [each.reason for each in rejections] == [reason] * 2
    unnamed = [{"question": "1 + 1?", "answer": 2, "solution": "<<1+1=2>>\n#### 2\n"}]
    assert [each.solution for each in screened(unnamed)[0]] == [None]


def test_headings_of_a_solution_stay():
    solution = "#### Step 1\nAdd.\n#### Step 2\nIt is 5."
    rows = [
        {"question": "x?", "answer": 5, "solution": solution},
        {"question": "y?", "answer": 5, "solution": f"{solution}\n#### 5 "},
    ]
    assert [each.solution for each in screened(rows)[0]] == [solution, solution]


def test_a_solution_that_thinks_first_loses_its_thinking():
    rows = [{"question": "x?", "answer": 5, "solution": "<think>Hm.\n4? No.</think>\n\nIt is 5."}]
    assert screened(rows)[0][0].solution == "It is 5."


def test_text_answers_are_kept_where_they_are_wanted():
    rows = [{"question": "x?", "answer": "?! {"}]
    assert screened(rows)[0] == []
    assert screened(rows, checks={"text_answers": True})[0][0].reference == "?! {"


def test_repeated_questions_are_duplicates_of_the_first():
    text = "Tom has 12 red apples and buys 5 green ones at the market. How many has he now?"
    rows = [
        {"question": text, "answer": 17},
        {"question": "  " + text.upper() + "\n", "answer": "$17.00"},
        {"question": text.replace("now", "today"), "answer": 17},
        {"question": text.replace("12", "13"), "answer": 18},
    ]
    problems, rejections = screened(rows)
    assert [each.number for each in problems] == [1, 4]
    assert [(each.number, each.kind, each.reason) for each in rejections] == [
        (2, "duplicate", "repeats row 1"),
        (3, "duplicate", "says nearly the same as row 1"),
    ]
    assert len(screened(rows, checks={"near_duplicate": 2})[0]) == 3


def test_the_same_question_with_another_answer_is_a_conflict_and_no_row_of_it_is_used():
    rows = [
        {"question": "What is 5 + 5?", "answer": 10},
        {"question": "Wie groß ist 1 + 1?", "answer": "2"},
        {"question": "what  is 5 + 5?", "answer": "10.0"},
        {"question": "What is 5 + 5?", "answer": 12},
        {"question": "wie groSS ist 1 + 1?", "answer": r"\frac{4}{2}"},
        {"question": "What is 5 +\u00a05?", "answer": 11},
    ]
    problems, rejections = screened(rows)
    assert [problem.number for problem in problems] == [2]
    assert [(r.number, r.kind, r.reason) for r in rejections] == [
        (1, "conflict", "rows 1 and 4 ask the same question, with the answers 10 and 12"),
        (3, "conflict", "rows 1 and 4 ask the same question, with the answers 10 and 12"),
        (4, "conflict", "rows 1 and 4 ask the same question, with the answers 10 and 12"),
        (5, "duplicate", "repeats row 2"),
        (6, "conflict", "rows 1 and 6 ask the same question, with the answers 10 and 11"),
    ]


def test_text_answers_conflict_too():
    rows = [{"question": "Where?", "answer": "Rome"}, {"question": "Where?", "answer": "Paris"}]
    problems, rejections = screened(rows, checks={"text_answers": True})
    assert not problems and [r.kind for r in rejections] == ["conflict"] * 2


def test_composed_and_decomposed_characters_are_the_same_question():
    rows = [{"question": "Caf\u00e9?", "answer": 1}, {"question": "Cafe\u0301?", "answer": 1}]
    assert [r.kind for r in screened(rows)[1]] == ["duplicate"]


def test_too_many_bad_rows_stop_the_run_with_an_example_of_each_kind():
    rows = [*GOOD, {"question": "x?"}, {"question": "y?"}, {"question": 5, "answer": ""}]
    with pytest.raises(DataError, match="too many rows are bad") as caught:
        screened(rows, checks={"bad_share": 0.4})
    message = str(caught.value)
    assert "3 of 6" in message and "at most 40.0%" in message and "p.jsonl" in message
    assert (
        'row 4: no answer under \'answer\'; the keys are question [{"question": "x?"}]' in message
    )
    assert "row 5" not in message and "row 6: the answer under 'answer' is empty" in message
    assert len(screened(rows, checks={"bad_share": 0.5})[0]) == 3


def test_too_many_answers_that_a_pattern_does_not_find_name_the_pattern():
    with pytest.raises(DataError, match="does not fit") as caught:
        screened(GOOD, checks={"bad_share": 0.4}, answer_pattern="#### (.+)")
    assert "problems.answer_pattern = '#### (.+)'" in caught.value.fix
    with pytest.raises(DataError, match="too many") as caught:
        screened([{"question": "x?"}], checks={"bad_share": 0.4})
    assert "answer_pattern" not in caught.value.fix


def test_duplicates_and_conflicts_are_not_bad():
    rows = [*GOOD, GOOD[0] | {"answer": 7}]
    assert len(screened(rows, checks={"bad_share": 0.0})[0]) == 2
    assert len(screened(GOOD * 9, checks={"bad_share": 0.0})[0]) == 3


@pytest.mark.parametrize("pattern", [r"^(?:a|aa)+(b)$", r"(?:x*)*(y)", r"(?:.*a){25}(b)"])
def test_a_pattern_that_would_take_hours_is_an_error_in_seconds(monkeypatch, pattern):
    monkeypatch.setattr(screening, "PATTERN_SECONDS", 0.2)
    rows = [{"question": "x?", "answer": "a" * 60 + "x" * 60}]
    start = time.monotonic()
    try:
        screened(rows, answer_pattern=pattern)
    except DataError as error:  # the engine sees that nothing matches
        assert "does not fit" in str(error)
    except ConfigError as error:
        assert error.got == pattern and "answer_pattern takes too long" in error.what
    assert time.monotonic() - start < 60


def test_the_bound_on_a_pattern_is_real(monkeypatch):
    monkeypatch.setattr(screening, "PATTERN_SECONDS", 0.1)
    with pytest.raises(ConfigError, match="takes too long"):
        screened([{"question": "x?", "answer": "a" * 60}], answer_pattern=r"^(?:a|aa)+(b)$")
