"""A critic on a server judges rollouts while others are still sampled."""

import hashlib

import pytest

from sdcore.testing import say
from tests.helpers import critic_server
from tests.helpers.runs import sdcore, tables

pytestmark = pytest.mark.usefixtures("prefect")
FILE = """
name = "streaming"
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 8, validation = 2, test = 2 }
sampling = { max_new_tokens = 48, batch_size = 64 }
training = { rounds = 2, questions_per_round = 4 }
evaluation = { every = 2, samples = 1, validation_samples = 1, resamples = 200 }
engine = { kind = "halves:Halves" }
critic = { kind = "llm", model = "scribe", base_url = "URL" }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.aligned]
objective = "distill"
context = "step_aligned"
group_size = 2
learning_rate = 0.002
"""
HALVES = '''
"""An engine that draws half of a training round, and the other half once the critic was asked."""
import time
from pathlib import Path

from sdcore.config import engine
from sdcore.engines import silent, unheard
from sdcore.engines.transformers import open_engine
from sdcore.errors import EngineError, ModelError

HERE = Path(__file__).parent
ASKED, FREE, FAILS, SERVER = (HERE / name for name in ("asked", "free", "fails", "server"))
ROUND = 8  # rollouts


@engine()
class Halves:
    update_share = None

    def __init__(self, settings, resources):
        self._inner, self._tries = open_engine(settings, resources), 0
        self.close, self.reads_folders = self._inner.close, SERVER.exists()

    def load(self, policy):
        if policy.folder != policy.base:  # it begins with the base
            self._inner.load(policy)

    def generate(self, requests, sampling, on_progress=silent, on_finished=unheard):
        if len(requests) != ROUND:
            return self._inner.generate(requests, sampling, on_progress, on_finished)
        self._tries += 1
        ASKED.unlink(missing_ok=True)
        first = self._inner.generate(requests[:5], sampling)  # two questions and a half
        on_finished(dict(enumerate(first)))
        patience = time.monotonic() + 60
        again = FAILS.exists() and self._tries == 2  # it has been asked
        while not again and not FREE.exists() and not ASKED.exists():
            if time.monotonic() > patience:
                raise ModelError("the critic was not asked about what was there")
            time.sleep(0.01)
        if FAILS.exists() and self._tries == 1:
            raise EngineError("the engine fails, and may be tried again")
        if FAILS.exists() and self._tries == 3:
            raise ModelError("the engine fails for good")
        return first + self._inner.generate(requests[5:], sampling)
'''
STAGES = ("rollouts", "critiques", "contexts", "updates", "token_signals", "policies", "scores")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the engine and the experiment file, and a critic that says it was asked."""
    folder = tmp_path_factory.mktemp("streaming")
    (folder / "halves.py").write_text(HALVES, "utf-8")

    def answer(body):
        (folder / "asked").touch()
        return critic_server.exact(body)

    with critic_server.serve(answer) as (url, asked):
        (folder / "streaming.toml").write_text(FILE.replace("URL", url), "utf-8")
        yield folder, asked


@pytest.fixture(scope="module")
def streamed(place, prefect):
    folder, _ = place
    sdcore("run", folder / "streaming.toml", "--workspace", folder / "streamed")
    return tables(folder / "streamed")


def test_the_rows_are_those_of_a_critic_that_waits_for_all_rollouts(place, streamed):
    folder, _ = place
    (folder / "free").touch()
    limited = "critic.max_total_tokens=100000000"  # one process at a time, after it has sampled
    sdcore("run", folder / "streaming.toml", limited, "--workspace", folder / "after")
    (folder / "free").unlink()
    after = tables(folder / "after")
    assert len(after["critiques"]) == 16
    assert [name for name in STAGES if not after[name].equals(streamed[name])] == []


@pytest.mark.night
def test_a_round_that_fails_after_half_of_it_pays_for_no_critique_twice(place, streamed):
    folder, asked = place
    (folder / "fails").touch()
    command = ["run", folder / "streaming.toml", "--workspace", folder / "failed"]
    before = len(asked)
    assert "fails for good" in sdcore(*command, check=False).stderr
    (folder / "fails").unlink()
    (folder / "free").touch()
    sdcore(*command)
    (folder / "free").unlink()
    prompts = [str(body["messages"]) for body in asked[before:]]
    assert len(prompts) == len(set(prompts)) > 8
    found = tables(folder / "failed")
    assert [name for name in STAGES if not found[name].equals(streamed[name])] == []


@pytest.mark.night
def test_a_cascade_judges_beside_the_sampler_too(place):
    """Its small model is asked beside it, and refused for about every second trace."""
    folder, _ = place

    def answer(body):
        (folder / "asked").touch()
        odd = hashlib.sha256(str(body["messages"]).encode()).digest()[0] % 2
        return say("no verdict") if body["model"] == "small" and odd else critic_server.exact(body)

    with critic_server.serve(answer) as (url, asked):
        models = {
            name: f'{{ kind = "llm", model = "{name}", base_url = "{url}", attempts = 1 }}'
            for name in ("small", "large")
        }
        parts = ", ".join(f"{name} = {text}" for name, text in models.items())
        single = 'critic = { kind = "llm", model = "scribe", base_url = "URL" }'
        file = folder / "cascade.toml"
        file.write_text(FILE.replace(single, f'critic = {{ kind = "cascade", {parts} }}'), "utf-8")
        sdcore("run", file, "--workspace", folder / "beside")
        beside = [body["model"] for body in asked]
        (folder / "free").touch()
        limited = "critic.max_total_tokens=100000000"
        sdcore("run", file, limited, "--workspace", folder / "waits")
        (folder / "free").unlink()
    found, expected = tables(folder / "beside"), tables(folder / "waits")
    names = (*STAGES, "critic_answers")
    assert [name for name in names if not found[name].equals(expected[name])] == []
    assert 0 < beside.count("large") < beside.count("small")


@pytest.mark.night
def test_it_does_so_while_the_round_before_is_trained(place):
    folder, _ = place
    (folder / "server").touch()
    lag = [folder / "streaming.toml", "training.lag=1", "training.rounds=3"]
    sdcore("run", *lag, "--workspace", folder / "lagging")
    (folder / "server").unlink()
    found = tables(folder / "lagging")
    assert len(found["critiques"]) == 24 and len(found["updates"]) == 3
