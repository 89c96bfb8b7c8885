import json
from collections import Counter

import pytest

from sdcore.config import ProblemsConfig
from sdcore.errors import DataError
from sdcore.problems.arithmetic import parse_question
from sdcore.problems.splits import load_problems, sort_out
from sdcore.store.schema import TABLES, content_key

WORDS = ("apple", "bridge", "candle", "desert", "engine", "flower", "garden", "hammer", "island")


def jsonl(path, rows, **settings):
    """Settings that read these rows; a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), "utf-8")
    sizes = {"train": 1, "validation": 1, "test": 1}
    return ProblemsConfig(source="jsonl", path=path, **(sizes | settings))


def numbered(count):
    return [{"question": f"{n} + 1?", "answer": n + 1} for n in range(count)]


def questions(config, split):
    problems = load_problems(config).problems.filter(split=split).sort("position")
    assert problems["position"].to_list() == list(range(len(problems)))
    return problems["question"].to_list()


def test_arithmetic_problems_have_all_columns_and_right_answers():
    config = ProblemsConfig(source="arithmetic", train=30, validation=8, test=12, seed=3)
    loaded = load_problems(config)
    problems = loaded.problems
    assert ["experiment_id", *problems.columns] == list(TABLES["problems"].dtypes)
    assert dict(problems["split"].value_counts().iter_rows()) == {
        "train": 30, "validation": 8, "test": 12,
    }  # fmt: skip
    assert problems["problem_id"].n_unique() == problems["question"].n_unique() == 50
    for question, solution, answer in problems.select("question", "solution", "reference").rows():
        assert answer == str(parse_question(question).answer)
        assert solution.endswith(f"<answer>{answer}</answer>")
    assert problems.equals(load_problems(config).problems)
    assert not problems.equals(load_problems(config.model_copy(update={"seed": 4})).problems)
    assert len(loaded.rejected_problems) == 0


def test_the_quickstarts_problems_are_always_the_same():
    config = ProblemsConfig(source="arithmetic", train=512, validation=100, test=200)
    problems = load_problems(config).problems
    # made by the first release; every result in the README is on these rows in this order
    assert content_key(problems.rows()) == "6e566e8825c7159f65ffa24edded6e20"


def test_splits_share_nothing_and_a_larger_train_split_moves_no_test_row(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", numbered(100), train=10, validation=5, test=5)
    larger = config.model_copy(update={"train": 50})
    for split in ("test", "validation"):
        assert questions(config, split) == questions(larger, split)
    assert questions(config, "train") == questions(larger, "train")[:10]
    assert load_problems(larger).problems["question"].n_unique() == 60


def test_a_question_keeps_its_split_when_the_file_grows(tmp_path):
    small, _ = sort_out(jsonl(tmp_path / "a.jsonl", numbered(60)))
    large, _ = sort_out(jsonl(tmp_path / "b.jsonl", numbered(600)[::-1]))
    for split, problems in small.items():
        assert {e.question for e in problems} <= {e.question for e in large[split]}
    # shares of 0.2 and 0.1: 120 and 60 of 600, within three standard deviations of 10 and 7
    assert 90 < len(large["test"]) < 150
    assert 39 < len(large["validation"]) < 81


@pytest.mark.parametrize("count", [61, 70, 150, 600])
def test_chosen_problems_stay_chosen_when_rows_are_appended(tmp_path, count):
    # Of the first 60 questions 14 fall into test, 2 into validation, 44 into train.
    sizes = {"train": 20, "validation": 2, "test": 8}
    small = jsonl(tmp_path / "a.jsonl", numbered(60), **sizes)
    large = jsonl(tmp_path / "b.jsonl", numbered(count), **sizes)
    for split, size in sizes.items():
        assert len(questions(small, split)) == size
        assert questions(small, split) == questions(large, split)


def test_appended_rows_that_are_not_chosen_remove_no_train_problem(tmp_path):
    # Stories share all their words with one another. Those appended fall into every split, but
    # test and validation are full by then: nothing is scored on them.
    telling = [{"question": story(7, "well"), "answer": 1}]
    appended = [{"question": story(7, f"word{n}"), "answer": n} for n in range(40)]
    ahead = numbered(60)
    before = jsonl(tmp_path / "a.jsonl", ahead + telling, train=40)
    after = jsonl(tmp_path / "b.jsonl", ahead + telling + appended, train=40)
    chosen = [*questions(before, "train"), *questions(before, "test")]
    assert chosen == [*questions(after, "train"), *questions(after, "test")]
    assert any("tale" in p.question for p in sort_out(after)[0]["test"])
    assert any("tale" in p.question for p in sort_out(after)[0]["train"])


def test_hash_order_samples_from_all_rows_whatever_their_order(tmp_path):
    rows = numbered(60)
    config = jsonl(tmp_path / "a.jsonl", rows, test=5, order="hash")
    turned = jsonl(tmp_path / "b.jsonl", rows[::-1], test=5, order="hash")
    in_file_order = config.model_copy(update={"order": "file"})
    assert questions(config, "test") == questions(turned, "test")
    assert questions(config, "test") != questions(in_file_order, "test")
    assert questions(config, "test") != questions(config.model_copy(update={"seed": 1}), "test")


def test_the_seed_decides_the_splits(tmp_path):
    config = jsonl(tmp_path / "a.jsonl", numbered(60), test=5)
    assert questions(config, "test") != questions(config.model_copy(update={"seed": 1}), "test")


def test_shares_are_settings(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", numbered(200), test_share=0.6, validation_share=0.3)
    splits, _ = sort_out(config)
    assert len(splits["test"]) > len(splits["validation"]) > len(splits["train"]) > 0


def test_every_row_is_a_problem_or_rejected(tmp_path):
    rows = [*numbered(90), "{nonsense", {"question": " 0  + 1? ", "answer": 1}, *numbered(2)]
    config = jsonl(tmp_path / "p.jsonl", rows)
    splits, rejections = sort_out(config)
    assert sum(map(len, splits.values())) + len(rejections) == len(rows)
    assert [(each.number, each.kind) for each in rejections] == [
        (91, "bad"), (92, "duplicate"), (93, "duplicate"), (94, "duplicate"),
    ]  # fmt: skip
    rejected = load_problems(config).rejected_problems
    assert ["experiment_id", *sorted(rejected.columns)] == [
        "experiment_id", "excerpt", "kind", "reason", "row", "source",
    ]  # fmt: skip
    assert rejected["source"].to_list() == ["p.jsonl"] * 4


def story(n, ending):
    return f"Once a tale number {n} told of {' and '.join(WORDS)}, and then it ended {ending}."


def test_train_problems_that_overlap_a_scored_one_are_left_out_and_recorded(tmp_path):
    rows = [{"question": story(7, f"word{n}"), "answer": n} for n in range(30)] + numbered(60)
    splits, rejections = sort_out(jsonl(tmp_path / "p.jsonl", rows))
    stories = {name: [e for e in split if "tale" in e.question] for name, split in splits.items()}
    assert stories["test"] and not stories["train"]
    assert {each.kind for each in rejections} == {"overlap"}
    scored = {e.number for name in ("test", "validation") for e in stories[name]}
    for each in rejections:
        assert any(each.reason.endswith(f"row {n}, which is kept for scoring") for n in scored)
    off = jsonl(tmp_path / "q.jsonl", rows, checks={"overlap": 2})
    assert sort_out(off)[1] == []


def test_generated_problems_are_dealt_in_order_and_have_no_solution():
    pytest.importorskip("reasoning_gym", reason="the extra sdcore[data] is not installed")
    config = ProblemsConfig(
        source="reasoning_gym", name="basic_arithmetic", train=6, validation=2, test=3
    )
    larger = config.model_copy(update={"train": 12})
    for split in ("test", "validation"):
        assert questions(config, split) == questions(larger, split)
    problems = load_problems(config).problems
    assert Counter(problems["split"]) == {"train": 6, "validation": 2, "test": 3}
    assert problems["solution"].null_count() == 11
    assert problems["source"][0] == "basic_arithmetic, seed 0, row 1"


def test_a_band_gets_more_candidates_than_are_wanted(tmp_path):
    config = jsonl(
        tmp_path / "p.jsonl", numbered(100), train=10, validation=4, test=4,
        band={"candidates": 2.5},
    )  # fmt: skip
    counts = Counter(load_problems(config).problems["split"])
    splits, _ = sort_out(config)
    assert counts == {
        "train": 25, "validation": min(10, len(splits["validation"])), "test": 10,
    }  # fmt: skip


def test_too_few_problems_are_counted(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", [*numbered(40), *numbered(3)], test=30)
    usable = r"40 usable rows, of which .*; left out: 3 duplicate"
    with pytest.raises(DataError, match=rf"{usable}[\s\S]*30 test[\s\S]*p\.jsonl"):
        load_problems(config)


def long_above(limit):
    """Refuse the problem `n + 1?` for every n above the limit, and train problems above half."""

    def too_long(problem, split):
        bound = limit // 2 if split == "train" else limit
        asked = int(problem.question.split()[0])
        return f"{asked} exceeds {bound}" if asked > bound else None

    return too_long


def test_the_next_problem_takes_the_place_of_one_that_is_too_long(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", numbered(100)[::-1], train=10, validation=2, test=5)
    plain, loaded = load_problems(config), load_problems(config, long_above(60))
    asked = {
        split: [int(q.split()[0]) for q in loaded.problems.filter(split=split)["question"]]
        for split in config.counts
    }
    assert {split: len(chosen) for split, chosen in asked.items()} == config.counts
    assert max(asked["test"] + asked["validation"]) <= 60 and max(asked["train"]) <= 30
    rejected = loaded.rejected_problems
    assert set(rejected["kind"]) == {"too long"} and len(plain.rejected_problems) == 0
    # rows are numbered from 1 and ask 99, 98, ..: those before the last chosen one are looked at
    assert set(rejected["row"]).isdisjoint(100 - n for chosen in asked.values() for n in chosen)
    assert all(
        reason.startswith(f"{100 - row} exceeds")
        for row, reason in rejected.select("row", "reason").rows()
    )
    train = sort_out(config)[0]["train"]
    before = [p.number for p in train if int(p.question.split()[0]) > max(asked["train"])]
    assert set(before) <= set(rejected["row"])
    assert not set(rejected["row"]) & {100 - n for n in range(min(asked["train"]))}


def test_too_many_long_problems_are_an_error_that_counts_them(tmp_path):
    config = jsonl(tmp_path / "p.jsonl", numbered(40), train=20)
    with pytest.raises(DataError, match=r"left out: \d+ too long"):
        load_problems(config, long_above(4))
    arithmetic = ProblemsConfig(source="arithmetic", train=3, validation=1, test=1)
    with pytest.raises(DataError, match="left out: 5 too long"):
        load_problems(arithmetic, lambda problem, split: "no room")
