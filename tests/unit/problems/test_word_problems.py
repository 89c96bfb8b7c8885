"""Word problems: right references by Python's own arithmetic, exact values, questions read back."""

import re
from fractions import Fraction
from itertools import islice

import pytest

from sdcore.config import ProblemsConfig, WordProblemsConfig
from sdcore.errors import DataError
from sdcore.problems import splits
from sdcore.problems.screening import Problem as Row
from sdcore.problems.splits import load_problems, sort_out
from sdcore.problems.word_problems import (
    CONSTANTS,
    KINDS,
    STYLES,
    WORDINGS,
    Fact,
    Problem,
    as_text,
    draw_problems,
    parse_question,
    reference_solution,
    reference_steps,
    solve,
    split_stories,
    stories,
)
from sdcore.traces import parse_trace

EASY = WordProblemsConfig(fewest_steps=2, most_steps=2, distractors=0, largest=20)
HARD = WordProblemsConfig(fewest_steps=5, distractors=3, largest=200, decimals=True)
EQUATION = re.compile(r"(\S+) = ([^,]+), which are the ")


def drawn(count, family=WordProblemsConfig(), seed=0):  # noqa: B008 - settings are frozen
    return list(islice(draw_problems(seed, holdout=True, family=family), count))


def exact(expression):
    """The value by Python's own evaluation, of fractions instead of floats."""
    code = re.sub(r"\d+(?:\.\d+)?", lambda number: f"Fraction('{number[0]}')", expression)
    return eval(code, {"Fraction": Fraction})


@pytest.mark.parametrize(
    ("family", "count"), [(EASY, 500), (WordProblemsConfig(), 1200), (HARD, 500)]
)
def test_references_are_right_by_an_independent_evaluation(family, count):
    problems = drawn(count, family)
    assert len(problems) == count
    for problem in problems:
        trace = parse_trace(reference_solution(problem))
        assert trace.well_formed
        assert family.fewest_steps <= len(trace.steps) <= family.most_steps
        at_hand = {*(n for fact in problem.facts for n in fact.numbers), Fraction(100)}
        for step in trace.steps:
            result, expression = EQUATION.match(step.text).groups()
            assert exact(expression) == Fraction(result) > 0
            used = {Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", expression)}
            assert used <= at_hand, "each number is given or computed before"
            at_hand.add(Fraction(result))
        assert Fraction(trace.answer) == Fraction(result) == problem.answer


@pytest.mark.parametrize("family", [EASY, HARD])
def test_numbers_are_countable_distinct_and_within_the_settings(family):
    for problem in drawn(300, family):
        values = [each.value for each in problem.quantities]
        assert len({*values, *CONSTANTS}) == len(values) + len(CONSTANTS)
        places = 100 if family.decimals else 1
        assert all((value * places).denominator == 1 for value in values)
        assert all(
            each.value.denominator == 1 for each in problem.quantities if each.unit != "dollars"
            and each.operation
        )  # fmt: skip
        noise = [fact for fact in problem.facts if fact.kind not in KINDS]
        assert len(noise) == family.distractors
        needed = {problem.quantities[place].value for place in problem.needed}
        assert not needed & {number for fact in noise for number in fact.numbers}


def test_every_question_is_distinct_and_read_back_exactly():
    problems = drawn(600)
    assert len({problem.question for problem in problems}) == 600
    assert {problem.style for problem in problems} == {*STYLES}
    assert {problem.story for problem in problems} == {*stories()}
    used = {fact.kind for problem in problems for fact in problem.facts}
    assert used == {*KINDS, "noise0", "noise1", "noise2"}
    for problem in problems:
        assert parse_question(problem.question) == problem
        assert "{" not in problem.question
        for number in written(problem):
            assert re.search(rf"(?<![\d.]){as_text(number)}0?(?!\.?\d)", problem.question)


def written(problem):
    """The numbers that stand in the question as digits."""
    return [n for fact in problem.facts if fact.kind != "fraction" for n in fact.numbers]


def test_a_problem_by_hand():
    """12 trays of 8 are 96; 6 fall, 90 are left; a third of them, 30, burn; 60 at $2.50 are 150."""
    facts = (
        Fact("groups", (Fraction(12), Fraction(8))), Fact("lose", (Fraction(6),)),
        Fact("noise0", (Fraction(40),)), Fact("fraction", (Fraction(3),)),
        Fact("price", (Fraction(5, 2),)),
    )  # fmt: skip
    problem = Problem("bakery", "told", "Amara", "", facts)
    assert problem.question == (
        "Amara bakes 12 trays with 8 muffins on each tray. Then Amara drops 6 of the muffins, "
        "which go into the bin. The bakery opened 40 years ago. Later a third of the muffins turn "
        "out burnt and are thrown away. In the end Amara sells all muffins for $2.50 apiece. How "
        "many dollars does Amara have from the muffins in the end?"
    )
    assert solve(problem, "formula") == [
        "12 * 8 = 96", "96 - 6 = 90", "90 / 3 = 30", "90 - 30 = 60", "60 * 2.5 = 150",
    ]  # fmt: skip
    assert problem.answer == 150 and parse_question(problem.question) == problem


def test_references_have_another_order_and_wording_than_traces():
    problems = drawn(400)
    own = {tuple(solve(problem, each)) for problem in problems for each in WORDINGS}
    theirs = [tuple(s.text for s in parse_trace(reference_solution(p)).steps) for p in problems]
    assert not own & {*theirs}
    reordered = [[*reference_steps(p)] != [*p.steps] for p in problems]
    assert sum(reordered) > 40  # where a step does not need the one before


def test_the_same_seed_gives_the_same_problems_and_warm_ups_others():
    assert drawn(50) == drawn(50) != drawn(50, seed=1)
    kept = {problem.question for problem in drawn(300, EASY)}
    shown = {p.question for p in islice(draw_problems(0, holdout=False, family=EASY), 300)}
    assert not kept & shown


def test_no_sentence_is_in_two_stories_and_each_has_what_it_needs():
    every = [text for story in stories().values() for text in story.sentences.values()]
    assert len(set(every)) == len(every)
    for story in stories().values():
        states = {kind.state for name, kind in KINDS.items() if name in story.sentences}
        assert {f"ask_{state}" for state in states} <= {*story.sentences}
        assert {"noise0", "noise1", "noise2"} <= {*story.sentences} and story.items


@pytest.mark.parametrize(
    "text",
    ["", "Compute 47+23-31-12.", "How many muffins does Amara have in the end?",
     "Amara bakes 12 trays with 8 muffins on each tray.",
     "Amara bakes 12 trays with 8 muffins on each tray. Hello. How many muffins does Amara have in "
     "the end?"],
)  # fmt: skip
def test_other_texts_are_no_questions(text):
    with pytest.raises(DataError, match="not a word problem"):
        parse_question(text)


def config(**settings):
    sizes = {"train": 40, "validation": 12, "test": 20}
    return ProblemsConfig(source="word_problems", **(sizes | settings))


def told(problems, split):
    questions = problems.filter(split=split).sort("position")["question"]
    return [parse_question(question) for question in questions]


def test_splits_share_no_question_and_a_larger_train_split_moves_none():
    for split_by in ("question", "template"):
        few = load_problems(config(split_by=split_by)).problems
        many = load_problems(config(split_by=split_by, train=80)).problems
        assert many["question"].n_unique() == 80 + 12 + 20
        for split in ("test", "validation"):
            assert told(few, split) == told(many, split)
        assert told(few, "train") == told(many, "train")[:40]
        for question, solution, reference in few.select("question", "solution", "reference").rows():
            assert reference == as_text(parse_question(question).answer)
            assert solution == reference_solution(parse_question(question))


@pytest.mark.parametrize("seed", range(5))
def test_no_story_is_in_two_splits_where_templates_are_split(seed):
    problems = load_problems(config(split_by="template", seed=seed)).problems
    used = {
        split: {p.story for p in told(problems, split)} for split in ("train", "validation", "test")
    }
    assert not used["train"] & used["test"] and not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]
    apart = split_stories(seed, 0.2, 0.1)
    assert {split: len(names) for split, names in apart.items()} == {
        "test": 2, "validation": 1, "train": 9,
    }  # fmt: skip
    assert all(used[split] <= set(names) for split, names in apart.items())
    assert sorted(name for names in apart.values() for name in names) == sorted(stories())
    assert all(source.endswith(tuple(stories())) for source in problems["source"])


@pytest.mark.parametrize(
    ("test", "validation", "dealt"),
    [(0, 0, (1, 1, 10)), (0.9, 0.09, (10, 1, 1)), (0.04, 0.95, (1, 10, 1))],
)
def test_every_split_has_a_story_whatever_the_shares(test, validation, dealt):
    apart = split_stories(0, test, validation)
    assert tuple(len(apart[split]) for split in ("test", "validation", "train")) == dealt
    shares = {"test_share": test, "validation_share": validation}
    found = load_problems(config(split_by="template", **shares)).problems
    assert {p.story for p in told(found, "train")} <= set(apart["train"])


def test_a_generator_that_mixes_templates_is_refused(monkeypatch):
    rows = [Row(n, f"q{n}", None, "1", "s", "same") for n in range(1, 5)]
    monkeypatch.setattr(splits, "_trusted", lambda records, config: (rows, []))
    with pytest.raises(DataError, match="does not keep templates apart"):
        sort_out(config(split_by="template", train=2, validation=1, test=1))


def test_files_are_split_by_a_column_of_templates(tmp_path):
    lines = [
        f'{{"question": "{n} + {k}?", "answer": {n + k}, "template": "t{k}"}}'
        for k in range(30) for n in range(8)
    ]  # fmt: skip
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join([*lines, '{"question": "no template?", "answer": 1}']), "utf-8")
    source = ProblemsConfig(
        source="jsonl", path=file, split_by="template", train=5, validation=5, test=5
    )
    found, rejected = sort_out(source)
    used = {split: {problem.template for problem in rows} for split, rows in found.items()}
    assert sum(map(len, used.values())) == len(set.union(*used.values())) == 30
    assert [row.reason.partition(";")[0] for row in rejected] == ["no template under 'template'"]


@pytest.mark.parametrize("wrong", [{"fewest_steps": 4, "most_steps": 3}, {"largest": 5}, {"x": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="word_problems"):
        ProblemsConfig(source="word_problems", word_problems=wrong)
