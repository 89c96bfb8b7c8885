"""Smoke runs: small, named as such, and as in the file in all else."""

import json

import httpx
import pytest

from sdcore.config import Experiment, load_experiment
from sdcore.critics.llm import LIVENESS_PROMPT, judge, prompt
from sdcore.critics.validation import Submission
from sdcore.problems.splits import load_problems
from sdcore.smoke import MOST, placeholders, smoke_run


def asked(url, text):
    body = {"messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{url}/chat/completions", json=body).json()
    return answer["choices"][0]["message"]["content"]


def test_the_run_is_small_and_its_name_and_description_say_what_it_is(tmp_path):
    paper = load_experiment("paper")
    with smoke_run(paper, tmp_path) as smoke:
        pass
    assert smoke.name == "paper-smoke" and smoke.model.name == "smoke:Qwen/Qwen3-1.7B"
    assert "no number means anything" in smoke.description
    assert "nvidia/OpenMathReasoning is not on this machine" in smoke.description
    assert smoke.seeds == paper.seeds[:1] and smoke.engine.kind == "transformers"
    assert smoke.problems.train == MOST["problems.train"] < paper.problems.train
    assert smoke.conditions["grpo"].group_size == MOST["conditions.group_size"]
    kept = ("prompts", "health", "contexts", "grader")
    assert all(getattr(smoke, name) == getattr(paper, name) for name in kept)
    assert (
        smoke.critic.model == paper.critic.model and smoke.critic.base_url != paper.critic.base_url
    )
    assert smoke.training.lora.alpha == paper.training.lora.alpha
    assert (
        len(load_problems(smoke.problems).problems.filter(split="train")) == 40
    )  # band candidates


def test_both_models_of_a_cascade_are_stood_in_for(tmp_path):
    paper = load_experiment("paper").model_dump()
    large = paper["critic"] | {"fallback": None, "max_budget": None}
    small = large | {"model": "small", "base_url": None}
    paper["critic"] = {"kind": "cascade", "small": small, "large": large}
    with smoke_run(Experiment.model_validate(paper), tmp_path) as smoke:
        url = smoke.critic.small.base_url
        assert asked(url, LIVENESS_PROMPT) == "A"
    assert smoke.critic.large.base_url == url != large["base_url"]
    assert smoke.critic.large.api_key_env is None


def test_no_size_grows_and_a_long_name_is_cut(tmp_path):
    small = ["problems.train=3", "training.questions_per_round=3", "evaluation.samples=1",
             "sampling.batch_size=1", f"name={64 * 'a'}"]  # fmt: skip
    with smoke_run(load_experiment("quickstart", small), tmp_path) as smoke:
        pass
    assert smoke.name == 58 * "a" + "-smoke"
    assert (smoke.problems.train, smoke.evaluation.samples, smoke.sampling.batch_size) == (3, 1, 1)


def test_a_sweep_keeps_two_trials_of_each_condition(tmp_path):
    with smoke_run(load_experiment("quickstart-rates"), tmp_path) as smoke:
        pass
    assert {family: len(trials) for family, trials in smoke.families.items()} == {
        "grpo": 2, "reference": 2, "step_aligned": 2,
    }  # fmt: skip
    assert smoke.conditions.keys() == smoke.trials.keys()


def test_problems_on_this_machine_are_used_and_others_are_stood_in_for(tmp_path):
    missing = placeholders({"problems": {"source": "jsonl"}})
    with smoke_run(load_experiment("gsm8k", missing), tmp_path) as smoke:
        pass
    assert "no file is given" in smoke.description
    assert len(load_problems(smoke.problems).problems) == 8
    row = {"question": "How many?", "answer": "4 + 3 = 7\n#### 7"}
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(row), "utf-8")
    with smoke_run(load_experiment("gsm8k", [*missing, f"problems.path={own}"]), tmp_path) as smoke:
        pass
    assert smoke.problems.path == own and "problems" not in smoke.description


@pytest.mark.parametrize("answer", ["7", "-12", "3.50", r"\frac{3}{4}", "1,200"])
def test_the_scripted_critics_critiques_are_valid_whatever_the_answer(answer, tmp_path):
    with smoke_run(load_experiment("gsm8k-critic", ["problems.path=x"]), tmp_path) as smoke:
        wrong = Submission("How many?", "no steps at all", False, answer, "a solution")
        critique = judge(asked(smoke.critic.base_url, prompt(wrong)), wrong)
        assert critique.valid and critique.case == "C"
