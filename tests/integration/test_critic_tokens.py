"""`sdcore design` stops before design.max_critic_tokens is exceeded, and goes on with more."""

from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest

import flows.compare_contexts
import flows.design as flow
import tasks.design as stages
from sdcore.config import load_experiment
from sdcore.errors import BudgetError
from sdcore.reports.design import as_dict
from sdcore.store.database import Store
from sdcore.testing import chat_endpoint, say
from tasks.run.session import Session
from tests.helpers import critic_server, searches

FILE = """
name = "thrifty"
seeds = [3]
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 6, validation = 1, test = 1 }
sampling = { max_new_tokens = 96, batch_size = 64 }
training = { rounds = 1, questions_per_round = 3 }
evaluation = { every = 1, samples = 1, validation_samples = 1, resamples = 100 }
diagnose = { problems = 3, rollouts = 1, teacher_samples = 0 }
[design]
contexts = ["step_aligned"]
tokens = ["all", "until_error"]
rungs = 1
confirm_seeds = 3
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[critic]
kind = "llm"
model = "scribe"
base_url = "URL"
attempts = 1
max_tokens = 200
concurrency = 1
[conditions.aligned]
objective = "distill"
context = "step_aligned"
learning_rate = 4e-4
"""
WINNER = "step_aligned-until_error"
EACH = 4000  # tokens of a critique; before it is asked, its bytes and max_tokens count: fewer


def answer(body):
    return say(critic_server.exact_text(body), read=EACH - 50, wrote=50)


@contextmanager
def untracked(_):
    yield MagicMock()


@pytest.fixture
def alone(monkeypatch):
    """Without servers, pages and comparisons; the winner is not the file's own condition."""
    grids = stages._grids

    def favour(base, run, split, round_):
        found = grids(base, run, split, round_)
        return {name: grid * 0 + (name == WINNER) for name, grid in found.items()}

    searches.without_server_and_pages(monkeypatch, [])
    monkeypatch.setattr(flows.compare_contexts, "compare", lambda base: None)
    monkeypatch.setattr(Session, "tracking", untracked)
    monkeypatch.setattr(stages, "_grids", favour)


@pytest.mark.usefixtures("alone")
def test_a_search_keeps_to_the_critics_tokens_and_goes_on_with_more_of_them(tmp_path):
    root, file = tmp_path / "runs", tmp_path / "thrifty.toml"

    def search(critiques):
        most = EACH * critiques
        return flow.design.fn(load_experiment(file, [f"design.max_critic_tokens={most}"]), root)

    def reached():
        """Where critiques were paid for, and what all of them took."""
        rows = Store(root / "sdcore.duckdb").query(
            "SELECT e.name, c.condition, sum(c.prompt_tokens + c.tokens)::INT AS tokens "
            "FROM critiques c JOIN experiments e USING (experiment_id) GROUP BY ALL"
        )
        return set(rows.select("name", "condition").rows()), rows["tokens"].sum()

    stops = {2: ("thrifty-design", "diagnose"), 4: ("thrifty-design", "aligned"),
             7: ("thrifty-confirm", "aligned")}  # fmt: skip
    with chat_endpoint(answer) as (url, asked):
        file.write_text(FILE.replace("URL", url), "utf-8")
        before = set()
        for critiques, place in stops.items():
            with pytest.raises(BudgetError, match=r"critic\.max_total_tokens, or design\.max_c"):
                search(critiques)
            places, tokens = reached()
            assert tokens == EACH * critiques == EACH * len(asked)
            assert place in places and place not in before
            before = places
        found = as_dict(search(100))
        assert found["winner"] == WINNER
        assert found["costs"][-1]["critic_tokens"] == EACH * len(asked) > EACH * 7
        bodies = [str(body["messages"]) for body in asked]
        assert len(bodies) == len(set(bodies))  # nothing is paid for twice
        assert as_dict(search(1)) == found and len(asked) == len(bodies)  # all is stored
