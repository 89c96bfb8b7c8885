import json
from pathlib import Path

import pytest

from sdcore.config import ProblemsConfig
from sdcore.critics.benchmark import Trial, balanced, make_trials, read_processbench
from sdcore.critics.llm import judge, prompt
from sdcore.critics.oracle import critique
from sdcore.critics.validation import Submission
from sdcore.errors import DataError
from sdcore.traces import parse_trace
from tests.helpers.paths import DATA
from tests.unit.critics.test_corruption import QUESTION, WORKED


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def test_arithmetic_trials_are_right_and_wrong_by_turns_and_the_oracle_agrees():
    trials = make_trials(ProblemsConfig(source="arithmetic"), 20, seed=3)
    assert [trial.first_wrong_step is None for trial in trials] == [True, False] * 10
    for trial in trials:
        found = critique(trial.question, trial.reference, trial.text)
        assert found.first_wrong_step == trial.first_wrong_step
        assert trial.correct == (trial.first_wrong_step is None)
    assert trials == make_trials(ProblemsConfig(source="arithmetic"), 20, seed=3)
    assert trials != make_trials(ProblemsConfig(source="arithmetic"), 20, seed=4)


def test_trials_are_of_the_experiments_own_family():
    small = ProblemsConfig(source="arithmetic", arithmetic={"operands": 3})
    for trial in make_trials(small, 10, seed=0):
        assert len(parse_trace(trial.text).steps) == 2
        found = critique(trial.question, trial.reference, trial.text)
        assert found.first_wrong_step == trial.first_wrong_step


def gsm8k(path: Path) -> ProblemsConfig:
    return ProblemsConfig(source="jsonl", path=path, solution="answer", answer_pattern="#### (.+)$")


def test_gsm8k_trials_come_from_worked_solutions(tmp_path):
    row = {"question": QUESTION, "answer": WORKED}
    bad = {"question": QUESTION, "answer": "No.\n#### 1"}
    false = {"question": QUESTION, "answer": WORKED.replace("3*8 = ", "3*8 = 25, or ")}
    config = gsm8k(lines(tmp_path / "g.jsonl", row, bad, row, false))
    right, wrong = make_trials(config, 2, seed=0)
    assert right.correct and right.first_wrong_step is None
    assert right.text == wrong.solution and "<<" not in right.text
    assert not wrong.correct and wrong.first_wrong_step in (1, 2, 3) and wrong.reference == "38"
    with pytest.raises(DataError, match=r"too few worked[\s\S]*<<48/2=24>>[\s\S]*g\.jsonl"):
        make_trials(config, 30, seed=0)


ROW = {
    "id": "gsm8k-0", "problem": "1+1+1?", "steps": ["1+1=2", "2+1=4, so \\boxed{4}"], "label": 1,
    "final_answer_correct": False,
}  # fmt: skip


def test_processbench_rows_become_traces(tmp_path):
    right = ROW | {"steps": ["1+1=2", "2+1=\\boxed{3}"], "label": -1, "final_answer_correct": True}
    known = ROW | {"answer": 3, "label": 0, "steps": ["1+1=3", "done"]}
    wrong, good, cut = read_processbench(lines(tmp_path / "p.jsonl", ROW, right, known))
    assert (wrong.first_wrong_step, wrong.reference, wrong.correct) == (2, None, False)
    assert parse_trace(wrong.text).well_formed and wrong.text.endswith("<answer>4</answer>")
    assert (good.first_wrong_step, good.reference, good.correct) == (None, "3", True)
    assert (cut.first_wrong_step, cut.reference) == (1, "3")
    assert cut.text == "<step_1>1+1=3</step_1><step_2>done</step_2><answer>done</answer>"


@pytest.mark.parametrize(
    "change",
    [{"label": 2}, {"label": "1"}, {"steps": []}, {"steps": "x"}, {"problem": None},
     {"final_answer_correct": 1}, {"steps": ["<step_1>", "x"]}, {"problem": "\ud800"},
     {"steps": ["1+1=2", "\ud800"]}],
)  # fmt: skip
def test_a_row_of_another_format_is_named(tmp_path, change):
    with pytest.raises(DataError, match=r"p\.jsonl, row 2"):
        read_processbench(lines(tmp_path / "p.jsonl", ROW, ROW | change))


def test_a_published_file_is_one_array_and_right_solutions_need_no_box():
    trials = read_processbench(DATA / "processbench.json")
    assert [trial.first_wrong_step for trial in trials] == [2, 1, None, None, 1, None]
    assert [trial.reference for trial in trials] == [None, None, "140", "15", "6", "30"]
    assert all(parse_trace(trial.text).well_formed and trial.blind for trial in trials)


@pytest.mark.parametrize("text", ["[1]", "[{}]", "[{", "[" * 100_000, '[{"problem": 1}]'])
def test_a_broken_array_is_named(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=r"p\.json"):
        read_processbench(tmp_path / "p.json")


def test_a_sample_is_balanced_seeded_and_fills_up():
    wrong, right = ([Trial(f"{kind}{n}", "q", "t", None, False, step) for n in range(400)]
                    for kind, step in (("w", 1), ("r", None)))  # fmt: skip
    trials = wrong + right  # published files have all wrong solutions first
    drawn = balanced(trials, 200, seed=0)
    assert sum(trial.first_wrong_step is None for trial in drawn) == 100
    assert len({trial.source for trial in drawn}) == 200
    assert drawn == balanced(trials, 200, seed=0) != balanced(trials, 200, seed=1)
    assert drawn[0] != wrong[0] or drawn[1] != wrong[1]
    few = balanced(wrong[:20] + right, 200, seed=0)
    assert len(few) == 200 and sum(trial.first_wrong_step is not None for trial in few) == 20
    assert len(balanced(wrong[:3] + right[:2], 200, seed=0)) == 5


def test_a_blind_critic_is_told_no_verdict_not_even_when_asked_again():
    wrong = read_processbench(DATA / "processbench.json")[0]
    handed = Submission(wrong.question, wrong.text, None, None)
    assert "final answer is" not in prompt(handed) and "its answer is" not in prompt(handed)
    for case, step in (("A", None), ("D", 2)):
        said = {"case": case, "first_wrong_step": step, "corrected": wrong.text}
        reason = judge(json.dumps(said), handed).invalid_reason or ""
        assert "answer is right" not in reason and "answer is wrong" not in reason
