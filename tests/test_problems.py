import json
import logging

import pytest

from sdcore.arithmetic import parse_question
from sdcore.config import ProblemsConfig
from sdcore.errors import DataError
from sdcore.problems import load_problems
from sdcore.schema import TABLES

GSM8K = {"solution": "answer", "answer_pattern": r"####\s*(.+)$"}


def jsonl(path, rows, **settings):
    """Settings that read these rows; a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), "utf-8")
    sizes = {"train": 1, "validation": 1, "test": 1}
    return ProblemsConfig(source="jsonl", path=path, **(sizes | settings))


def numbered(count):
    return [{"question": f"{n} + 1?", "answer": n + 1} for n in range(count)]


def questions(config, split):
    problems = load_problems(config).filter(split=split).sort("position")
    assert problems["position"].to_list() == list(range(len(problems)))
    return problems["question"].to_list()


def test_arithmetic_problems_have_all_columns_and_right_answers():
    config = ProblemsConfig(source="arithmetic", train=30, validation=8, test=12, seed=3)
    problems = load_problems(config)
    assert ["experiment_id", *problems.columns] == list(TABLES["problems"].dtypes)
    assert dict(problems["split"].value_counts().iter_rows()) == {
        "train": 30, "validation": 8, "test": 12,
    }  # fmt: skip
    assert problems["problem_id"].n_unique() == problems["question"].n_unique() == 50
    for question, solution, answer in problems.select("question", "solution", "answer").rows():
        assert answer == str(parse_question(question).answer)
        assert solution.endswith(f"<answer>{answer}</answer>")
    assert problems.equals(load_problems(config))
    assert not problems.equals(load_problems(config.model_copy(update={"seed": 4})))


def test_splits_share_nothing_and_a_larger_train_split_moves_no_test_row(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", numbered(40), train=10, validation=5, test=5)
    larger = config.model_copy(update={"train": 30})
    for split in ("test", "validation"):
        assert questions(config, split) == questions(larger, split)
    assert questions(config, "train") == questions(larger, "train")[:10]
    assert load_problems(larger)["question"].n_unique() == 40


def test_the_order_depends_on_content_and_seed_not_on_the_file(tmp_path):
    config = jsonl(tmp_path / "a.jsonl", numbered(30), test=20)
    turned = jsonl(tmp_path / "b.jsonl", numbered(30)[::-1], test=20)
    assert questions(config, "test") == questions(turned, "test")
    assert questions(config, "test") != questions(config.model_copy(update={"seed": 1}), "test")


def test_gsm8k_rows_lose_their_annotations(tmp_path):
    rows = [
        {
            "question": f"Clips {n}?",
            "answer": f"Half of 48 is <<48/2=24>>24.\nSo {n}.\n#### 1,{n}00",
        }
        for n in range(3)
    ]
    problems = load_problems(jsonl(tmp_path / "g.jsonl", rows, **GSM8K)).sort("question")
    assert problems["answer"].to_list() == ["1,000", "1,100", "1,200"]
    assert problems["solution"][2] == "Half of 48 is 24.\nSo 2."
    assert problems["source"][2] == "g.jsonl, row 3"


def test_a_source_without_solutions_has_none(tmp_path):
    problems = load_problems(jsonl(tmp_path / "p.jsonl", [*numbered(3), ""]))
    assert problems["solution"].null_count() == 3
    assert problems["solution"].dtype == TABLES["problems"].dtypes["solution"]


def test_line_separators_inside_strings_do_not_cut_rows(tmp_path):
    rows = [{"question": f"a\u2028b\u0085{n}", "answer": n} for n in range(3)]
    assert load_problems(jsonl(tmp_path / "p.jsonl", rows))["question"].len() == 3


def test_repeated_questions_are_left_out_and_counted(tmp_path, caplog):
    rows = [*numbered(3), {"question": " 0  + 1? ", "answer": 9}, *numbered(2)]
    config = jsonl(tmp_path / "p.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        assert load_problems(config)["question"].n_unique() == 3
    assert "left out 3 repeated questions" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{nonsense", "not JSON"),
        ("[1, 2]", "not an object"),
        ({"question": "x?"}, r"'answer'[\s\S]*the keys question"),
        ({"question": " ", "answer": 1}, "no text under 'question'"),
        ({"question": ["x"], "answer": 1}, "no text under 'question'"),
        ({"question": "x?", "answer": True}, r"no text under 'answer'[\s\S]*True"),
        ({"question": "x?", "answer": None}, "no text under 'answer'"),
    ],
)
def test_a_bad_row_is_named_with_what_is_bad(tmp_path, row, message):
    config = jsonl(tmp_path / "p.jsonl", [*numbered(2), row, *numbered(5)])
    with pytest.raises(DataError, match=message) as caught:
        load_problems(config)
    assert "p.jsonl, row 3" in str(caught.value)


def test_an_answer_that_does_not_fit_the_pattern_is_named(tmp_path):
    rows = [{"question": "x?", "answer": "it is 5"}]
    with pytest.raises(DataError, match=r"answer_pattern[\s\S]*it is 5[\s\S]*row 1"):
        load_problems(jsonl(tmp_path / "p.jsonl", rows, **GSM8K))


def test_a_named_solution_must_be_there(tmp_path):
    with pytest.raises(DataError, match="no text under 'worked'"):
        load_problems(jsonl(tmp_path / "p.jsonl", numbered(3), solution="worked"))


def test_too_few_problems_are_counted(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", numbered(7), train=5, validation=2, test=1)
    with pytest.raises(DataError, match=r"7 distinct[\s\S]*8: 1 test, 2 validation, 5 train"):
        load_problems(config)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_file_is_a_data_error(tmp_path, content):
    config = jsonl(tmp_path / "p.jsonl", [])
    config.path.unlink() if content is None else config.path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*p\.jsonl"):
        load_problems(config)
