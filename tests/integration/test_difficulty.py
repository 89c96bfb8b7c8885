import polars as pl
import pytest

from sdcore.config import BandConfig, Experiment
from sdcore.critics.budget import Paid
from sdcore.critics.difficulty import measure
from sdcore.errors import BudgetError, ConfigError, DataError
from sdcore.problems.arithmetic import parse_question
from sdcore.store.schema import TABLES
from tasks.difficulty import measure_difficulty
from tasks.prepare import prepare
from tasks.run.condition_run import base_run
from tasks.run.critiques import critic_budget
from tasks.run.session import Session
from tests.helpers.critic_server import say, serve
from tests.helpers.example import EXPERIMENT, rollout

BAND = BandConfig(samples=4, accuracy_below=0.5, format_rate=0.75)


def sampled(problem, right, formed):
    rows = [
        rollout("base", 0, "filter", 0, problem, i, correct=i < right) | {"well_formed": i < formed}
        for i in range(4)
    ]
    return TABLES["rollouts"].frame(rows)


@pytest.mark.parametrize(
    ("right", "formed", "in_band"),
    [
        (0, 4, True), (1, 3, True),
        (2, 4, False),  # 2 / 4 is not below 0.5: too easy
        (1, 2, False),  # 2 / 4 is below 0.75: ill-formed
    ],
)  # fmt: skip
def test_the_band_holds_what_is_hard_but_well_formed(right, formed, in_band):
    row = measure(sampled("p", right, formed), BAND).row(0, named=True)
    assert row == {
        "problem_id": "p", "policy_id": "base/0/0", "k": 4, "avg_at_k": right / 4,
        "format_rate": formed / 4, "in_band": in_band,
    }  # fmt: skip


def test_each_problem_is_measured_by_its_own_rollouts():
    rows = measure(pl.concat([sampled("b", 4, 4), sampled("a", 0, 4)]), BAND)
    assert rows.select("problem_id", "avg_at_k").rows() == [("a", 0.0), ("b", 1.0)]


def experiment(critic=None, **band):
    settings = EXPERIMENT.model_dump(mode="json") | ({"critic": critic} if critic else {})
    settings["problems"] |= {"train": 6, "validation": 2, "test": 2, "band": {"samples": 4} | band}
    settings["sampling"] = {"max_new_tokens": 64}
    settings["prompts"] = {"student": "{{ question }}"}
    return Experiment.model_validate(settings)


def test_candidates_are_measured_until_enough_are_in_the_band(tmp_path):
    base = base_run(Session(tmp_path), experiment(accuracy_below=0.6, format_rate=0.5))
    prepare.fn(base)
    assert len(base.candidates("train")) == 24  # four for each one wanted
    found = measure_difficulty.fn(base, "train")
    measured = base.store.rows("difficulties")
    rollouts = base.store.rows("rollouts", purpose="filter")
    assert len(measured) in (6, 12, 18, 24)  # so many at a time as are wanted
    assert len(rollouts) == 4 * len(measured)
    hard = measured.filter(pl.col("in_band"))
    assert found == len(hard) >= 6
    assert (hard["avg_at_k"] < 0.6).all() and (hard["format_rate"] >= 0.5).all()
    easy = measured.filter(~pl.col("in_band"))
    assert ((easy["avg_at_k"] >= 0.6) | (easy["format_rate"] < 0.5)).all()
    assert measured["critic_solves"].all()
    chosen = base.problems("train")
    offered = base.candidates("train")["problem_id"].to_list()
    wanted = [each for each in offered if each in set(hard["problem_id"])][:6]
    assert chosen["problem_id"].to_list() == wanted
    measure_difficulty.fn(base, "train")  # again: nothing is sampled, nothing is written twice
    assert len(base.store.rows("rollouts")) == len(rollouts)
    assert len(base.store.rows("difficulties")) == len(measured)


def test_a_language_model_tries_what_the_solver_finds_hard(tmp_path):
    def answer(request):
        question = request["messages"][-1]["content"].splitlines()[-1]
        value = parse_question(question).answer
        asked.append(question)
        return say(f"<think>Hm.</think><step_1>s</step_1><answer>{value + value % 2}</answer>")

    asked: list[str] = []
    with serve(answer) as (url, _):
        critic = {"kind": "llm", "model": "m", "base_url": url, "price_out": 1e6,
                  "max_total_tokens": 10**6}  # fmt: skip
        settings = {"critic": critic, "accuracy_below": 0.6, "format_rate": 0.5, "candidates": 3}
        base = base_run(Session(tmp_path), experiment(**settings))
        prepare.fn(base)
        measure_difficulty.fn(base, "validation")
        first = base.store.rows("difficulties")
        measure_difficulty.fn(base, "validation")  # again: nobody is asked twice
    problems = base.candidates("validation")
    rows = first.join(problems, on="problem_id")
    tried = rows.filter(pl.col("critic_solves").is_not_null())
    assert base.store.rows("difficulties").equals(first)
    assert sorted(asked) == sorted(tried["question"]) and len(set(asked)) == len(asked) > 0
    for row in rows.iter_rows(named=True):
        hard = row["avg_at_k"] < 0.6 and row["format_rate"] >= 0.5
        even = int(row["reference"]) % 2 == 0  # it adds one to what is odd
        assert row["critic_solves"] == (even if hard else None)
        assert row["in_band"] == (hard and even)
        assert row["critic_cost"] == (50.0 if hard else 0.0)  # 50 tokens, at 1 each
        assert row["critic_tokens"] == (150 if hard else 0)  # 100 read, 50 written
    with critic_budget(base) as budget:  # as a resumed run has it
        budget.take(Paid(tokens=10**6 - 150 * len(tried)))
        with pytest.raises(BudgetError):
            budget.take(Paid(tokens=1))


def test_too_few_in_the_band_are_counted_and_their_measures_kept(tmp_path):
    base = base_run(Session(tmp_path), experiment(accuracy_below=1e-9, candidates=1))
    prepare.fn(base)
    with pytest.raises(DataError, match=r"too few test problems[\s\S]*\d of 2[\s\S]*1e-09"):
        measure_difficulty.fn(base, "test")
    assert len(base.store.rows("difficulties")) == 2


def test_a_condition_that_needs_solutions_says_so_before_anything_is_sampled(tmp_path):
    pytest.importorskip("reasoning_gym", reason="the extra sdcore[data] is not installed")
    settings = EXPERIMENT.model_dump(mode="json")
    settings["problems"] |= {"source": "reasoning_gym", "name": "basic_arithmetic"}
    settings["sampling"]["max_new_tokens"] = 64  # more would not fit beside a question
    del settings["conditions"]["step_aligned"], settings["critic"]  # none judges these problems
    base = base_run(Session(tmp_path), Experiment.model_validate(settings))
    with pytest.raises(ConfigError, match=r"'reference' shows[\s\S]*2 train problems without"):
        prepare.fn(base)
    assert not any(len(base.store.rows(table)) for table in TABLES)
    del settings["conditions"]["reference"]
    base = base_run(Session(tmp_path), Experiment.model_validate(settings))
    assert prepare.fn(base) == 7
