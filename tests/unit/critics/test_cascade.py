from threading import Event

import pytest
from pydantic import ValidationError

from sdcore.config import CascadeConfig, Experiment, LlmCriticConfig
from sdcore.contexts import Critique
from sdcore.critics.cascade import Cascade
from sdcore.critics.llm import Critic, open_critic
from sdcore.critics.validation import Submission
from sdcore.errors import EngineError

SMALL = {"kind": "llm", "model": "s", "price_out": 1.0}
LARGE = {"kind": "llm", "model": "l", "base_url": "http://127.0.0.1:1/v1"}


def submission(text):
    return Submission("1+1", text, False, "2", None)


class Judge(Critic):
    """Its critiques are valid for the traces that it knows; each takes 10 tokens at 1.0."""

    def __init__(self, name, known):
        self.name, self.known, self.heard = name, known, []

    def content_id(self, submission):
        return f"{self.name} {submission.trace}"

    def criticise(self, submissions):
        there = [*submissions]
        self.heard += [each.trace for each in there]
        for index, each in reversed([*enumerate(there)]):
            valid = each.trace in self.known
            yield index, Critique("D", 1, None, valid, tokens=10, cost=1.0, raw=self.name)


def test_the_large_one_judges_what_is_refused_and_its_critique_counts_both():
    small, large = Judge("s", {"a", "c"}), Judge("l", {"b"})
    cascade = Cascade(small, large)
    found = dict(cascade.criticise([submission(text) for text in "abcd"]))
    assert (sorted(small.heard), sorted(large.heard)) == ([*"abcd"], ["b", "d"])
    assert [found[i].writer for i in range(4)] == ["s", "l", "s", "l"]
    assert [found[i].valid for i in range(4)] == [True, True, True, False]
    assert [(found[i].attempts, found[i].tokens, found[i].cost) for i in range(4)] == [
        (1, 10, 1.0), (2, 20, 2.0), (1, 10, 1.0), (2, 20, 2.0),
    ]  # fmt: skip
    assert cascade.content_id(submission("a")) != cascade.content_id(submission("b"))


def test_the_large_one_begins_while_the_small_one_is_still_judging():
    heard = Event()

    class Small(Judge):
        def criticise(self, submissions):
            for index, _ in enumerate(submissions):
                yield index, Critique("D", 1, None, False, raw=self.name)
                assert heard.wait(10)

    class Large(Judge):
        def criticise(self, submissions):
            for index, _ in enumerate(submissions):
                heard.set()
                yield index, Critique("D", 1, None, True, raw=self.name)

    cascade = Cascade(Small("s", ()), Large("l", ()))
    found = dict(cascade.criticise([submission(text) for text in "ab"]))
    assert [found[i].writer for i in range(2)] == ["l", "l"]


@pytest.mark.parametrize("failing", ["small", "large"])
def test_the_failure_of_either_reaches_the_caller(failing):
    class Broken(Judge):
        def criticise(self, submissions):
            yield from super().criticise([*submissions])
            raise EngineError("refused")

    critics = {"small": Judge("s", {"a"}), "large": Judge("l", {"b"})}
    critics[failing] = Broken(failing, {"a", "b"} if failing == "large" else {"a"})
    with pytest.raises(EngineError, match="refused"):
        list(Cascade(**critics).criticise([submission(text) for text in "ab"]))
    assert critics["large"].heard == ["b"]  # what was refused was asked about all the same


def test_its_settings_open_both_models_with_the_prompts_of_a_condition():
    prompts = {"prompts": {"short": "Judge {{ trace }}"}, "prompt_of": {"aligned": "short"}}
    settings = CascadeConfig(kind="cascade", small=SMALL | prompts, large=LARGE)
    opened = []
    critic = open_critic(settings.asking("aligned"), opened.append)
    assert [each.model for each in opened] == ["s", "l"]
    assert [each.prompt for each in opened] == ["short", None]
    assert (critic.name, critic.attempts) == ("s, then l", 6)


@pytest.mark.parametrize(("name", "value"), [("max_budget", 1.0), ("fallback", "reference")])
def test_what_holds_for_both_is_not_set_for_one(name, value):
    with pytest.raises(ValidationError, match=f"critic.large.{name}: of both together"):
        CascadeConfig(kind="cascade", small=SMALL, large=LARGE | {name: value})


def experiment(**critic):
    return Experiment.model_validate(
        {
            "name": "cascaded",
            "model": {"name": "builtin:tiny-solver"},
            "problems": {"source": "arithmetic", "train": 4, "validation": 1, "test": 1},
            "training": {"questions_per_round": 2},
            "critic": {"kind": "cascade", "small": SMALL, "large": LARGE} | critic,
            "conditions": {
                "a": {"objective": "distill", "context": "step_aligned", "learning_rate": 1e-3}
            },
        }
    )


def test_what_changes_no_answer_of_either_is_not_in_the_fingerprint():
    usual = experiment()
    cheap, near = {"concurrency": 2, "price_in": 3.0}, {"base_url": "http://127.0.0.1:2/v1"}
    near |= {"price_out": 2.0, "timeout": 9.0}
    same = experiment(max_budget=3.0, small=SMALL | cheap, large=LARGE | near)
    assert same.fingerprint == usual.fingerprint
    assert experiment(small=SMALL | {"attempts": 1}).fingerprint != usual.fingerprint
    assert experiment(large=LARGE | {"model": "other"}).fingerprint != usual.fingerprint
    stored = Experiment.model_validate_json(usual.model_dump_json())
    assert stored == usual and stored.fingerprint == usual.fingerprint
    assert isinstance(stored.critic.large, LlmCriticConfig)
