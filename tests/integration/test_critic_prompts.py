"""Prompts of a language model as critic as candidates of `sdcore design`, at its smallest."""

import json

import polars as pl
import pytest

import flows.design as flow
from sdcore.config import load_experiment
from sdcore.critics.llm import PROMPT
from sdcore.reports.design import as_dict
from sdcore.store.database import Store
from sdcore.testing import chat_endpoint, say
from tests.helpers import critic_server, searches

pytestmark = pytest.mark.night
FILE = """
name = "prompts"
seeds = [3]
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 4, validation = 2, test = 2 }
sampling = { max_new_tokens = 96, batch_size = 64 }
training = { rounds = 1, questions_per_round = 2 }
evaluation = { every = 1, samples = 1, validation_samples = 1, resamples = 100 }
diagnose = { problems = 3, rollouts = 1, teacher_samples = 1 }
design = { contexts = ["step_aligned"], tokens = ["all"], rungs = 1, confirm_seeds = 3 }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[critic]
kind = "llm"
model = "scribe"
base_url = "URL"
attempts = 1
max_tokens = 200
price_in = 1.0
price_out = 2.0
[critic.prompts]
terse = PROMPT
[conditions.aligned]
objective = "distill"
context = "step_aligned"
learning_rate = 4e-4
"""
TERSE = PROMPT.replace("You are a faithful scribe.", "Be terse.")


def answer(body):
    """As the oracle for the terse prompt, useless for the other one."""
    terse = "Be terse." in body["messages"][0]["content"]
    return say(critic_server.exact_text(body) if terse else "no", read=300, wrote=50)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search and its repetition; nothing is confirmed."""
    folder = tmp_path_factory.mktemp("prompts")
    said = list[str]()
    with pytest.MonkeyPatch.context() as patch, chat_endpoint(answer) as (url, asked):
        text = FILE.replace("PROMPT", json.dumps(TERSE)).replace("URL", url)
        (folder / "file.toml").write_text(text, "utf-8")
        experiment, root = load_experiment(folder / "file.toml"), folder / "runs"
        searches.without_server_and_pages(patch, said)
        patch.setattr(flow, "compare_contexts", Unconfirmed())
        found = as_dict(flow.design.fn(experiment, root))
        heard = [body["messages"][0]["content"] for body in asked]
        again = as_dict(flow.design.fn(experiment, root))
    return (
        Store(root / "sdcore.duckdb"),
        found,
        said,
        heard,
        again == found and len(heard) == len(asked),
    )


class Unconfirmed:
    """In place of the run that confirms: only its problems are there."""

    def fn(self, experiment, root):
        with flow.Session(root) as session:
            flow.prepare(flow.base_run(session, experiment))


def test_each_prompt_is_a_candidate_judged_on_the_same_rollouts(finished):
    store, found, *_ = finished
    rows = store.rows("candidates", rung=0).sort("rank")
    assert rows["candidate"].to_list() == ["step_aligned-all-terse", "aligned"]
    scores = dict(rows.select("candidate", "score").iter_rows())
    assert scores["step_aligned-all-terse"] > scores["aligned"] == 0  # nothing of it is valid
    frozen = store.rows("rollouts", experiment_id=found["search_id"])
    texts = {
        purpose: sorted(frozen.filter(purpose=purpose)["text"])
        for purpose in ("diagnose", "diagnose/terse")
    }
    assert texts["diagnose"] == texts["diagnose/terse"] and len(texts["diagnose"]) == 3


def test_critiques_are_stored_under_their_prompt_and_none_is_asked_for_twice(finished):
    store, found, _, heard, unchanged = finished
    rows = store.rows("critiques", experiment_id=found["search_id"])
    assert unchanged and len(heard) == len(set(heard))
    valid = rows.group_by("condition").agg(pl.col("valid").any())
    assert dict(valid.iter_rows()) == {
        "diagnose": False, "diagnose/terse": True, "aligned": False, "step_aligned-all-terse": True,
    }  # fmt: skip
    # both name the same traces: their contents differ by the prompt
    contents = {
        name: set(rows.filter(condition=name)["content_id"])
        for name in ("diagnose", "diagnose/terse")
    }
    assert not contents["diagnose"] & contents["diagnose/terse"]


def test_the_critics_budget_is_said_for_each_prompt_and_kept(finished):
    store, found, said, heard, _ = finished
    # 3 frozen rollouts for each prompt; rung 1: 2 candidates x 2; confirmation: 2 x 3 seeds x 2
    told = [line for line in said if line.startswith("Critic, ")]
    written = {
        "preflight, sdcore's own prompt": 600, "preflight, terse": 600, "rung 1": 800,
        "confirmation": 2400,
    }  # fmt: skip
    assert len(told) == 2 * len(written)  # the search and its repetition
    for line, (stage, tokens) in zip(told, written.items(), strict=False):
        assert line.startswith(f"Critic, {stage}: at most {tokens // 200} critiques, {tokens:,} t")
    assert any(line.startswith("Budget of the critic: at most 0.0") for line in said)
    assert found["costs"][-1]["critic_tokens"] == 350 * len(heard)
    paid = store.rows("critiques", experiment_id=found["search_id"]).filter(pl.col("attempts") > 0)
    assert paid["tokens"].sum() <= 600 + 600 + 800 and len(paid) == len(heard)


def test_the_winner_keeps_its_prompt(finished):
    _, found, *_ = finished
    assert found["winner"] == "step_aligned-all-terse"
    assert "prompt_of = {" in found["file"] or "[critic.prompt_of]" in found["file"]
