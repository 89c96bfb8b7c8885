"""The candidates of an experiment file, and why combinations are skipped."""

import polars as pl
import pytest
from pydantic import ValidationError

from sdcore.config import Experiment
from sdcore.design.candidates import enumerate_field
from sdcore.design.experiments import prompt_experiment, search_experiment
from sdcore.errors import ConfigError

TREE = {
    "name": "small",
    "model": {"name": "builtin:tiny-solver"},
    "problems": {"source": "arithmetic", "train": 32},
    "contexts": {"own": "The answer is {{ reference }}."},
    "conditions": {
        "grpo": {"objective": "grpo", "learning_rate": 1e-4},
        "ref": {"objective": "distill", "context": "reference", "learning_rate": 2e-4},
        "step": {"objective": "distill", "context": "step_aligned", "learning_rate": 4e-4},
    },
}
JSONL = {"source": "jsonl", "path": "problems.jsonl", "train": 32}


def field(solutions=("s",), **sections):
    return enumerate_field(Experiment.model_validate(TREE | sections), pl.Series(solutions))


def names(found):
    return [each.name for each in found.candidates]


def test_the_files_own_conditions_lead_and_every_combination_follows_once():
    found = field(design={"contexts": ["reference", "step_aligned"], "tokens": ["all", "error"]})
    assert names(found) == ["step", "ref", "reference-error", "step_aligned-error"]
    assert found.baseline.name == "step" and not found.skipped


def test_without_settings_the_quoting_regimes_and_the_files_templates_are_looked_at():
    found = field()
    assert {each.context for each in found.candidates} == {
        "reference", "step_aligned", "full_quote", "omission", "own",
    }  # fmt: skip
    assert len(found.candidates) == 5 * 3


def test_settings_are_those_of_the_condition_with_the_same_context():
    rates = {each.name: each.condition.learning_rate for each in field().candidates}
    assert rates["reference-error"] == 2e-4 and rates["step_aligned-error"] == 4e-4
    assert rates["own-all"] == 4e-4  # the baseline's
    other = field(design={"condition": "ref"})
    rates = {each.name: each.condition.learning_rate for each in other.candidates}
    assert other.baseline.name == "ref" and rates["own-all"] == 2e-4


def test_divergences_and_weights_have_names_of_their_own():
    design = {
        "contexts": ["step_aligned"],
        "tokens": ["all", {"after": 0.5, "answer": 0}],
        "divergences": ["forward_kl", "jsd"],
    }
    found = field(design=design)
    weighted = "step_aligned-regions-before1-at1-after0.5-answer0"
    assert names(found) == ["step", "ref", "step_aligned-all-jsd", weighted, f"{weighted}-jsd"]
    jsd = next(each for each in found.candidates if each.name == f"{weighted}-jsd").condition
    assert (jsd.divergence, jsd.tokens.after) == ("jsd", 0.5)


def test_a_name_that_is_taken_gets_a_number():
    taken = {"objective": "distill", "context": "own", "learning_rate": 1e-3}
    found = field(
        conditions=TREE["conditions"] | {"reference-error": taken},
        design={"contexts": ["reference"], "tokens": ["error"], "condition": "ref"},
    )
    assert names(found) == ["ref", "step", "reference-error", "reference-error-2"]


def test_without_a_critic_masks_by_region_and_critiques_are_skipped_with_the_reason():
    conditions = {"ref": TREE["conditions"]["ref"]}
    found = field(problems=JSONL, conditions=conditions)
    assert names(found) == ["ref", "own-all"]
    reasons = {each.name: each.reason for each in found.skipped}
    assert "until_error needs a critic" in reasons["own-until_error"]
    assert "needs a critic" in reasons["step_aligned-all"]
    assert len(reasons) == 5 * 3 - 2


def test_a_context_whose_source_the_problems_lack_is_skipped():
    contexts = {"another": "{{ other_solution }}"}
    own = {"hint": TREE["conditions"]["ref"] | {"context": "wrong_hint"}}
    own["pair"] = own["hint"] | {"group_size": 2}
    other = {"other": own["hint"] | {"context": "another"}}
    conditions = TREE["conditions"] | own | other
    design = {"condition": "step", "contexts": ["reference", "step_aligned"], "tokens": ["error"]}
    skipped = {}
    for solutions in (["s", None], [None, None]):
        found = field(solutions, contexts=contexts, conditions=conditions, design=design)
        skipped[solutions[0]] = {each.name: each.reason for each in found.skipped}
    assert skipped["s"] == {
        "ref": "the problems have no solution, which reference shows",
        "reference-error": "the problems have no solution, which reference shows",
        "hint": "the problems have no wrong_solution, which wrong_hint shows",
    }
    more = {"other": "the problems have no other_solution, which another shows"}
    assert skipped[None] == skipped["s"] | more


def test_there_has_to_be_a_choice_and_a_condition_to_compare_with():
    only = {"grpo": TREE["conditions"]["grpo"]}
    with pytest.raises(ConfigError, match="no condition of the file shows"):
        field(conditions=only)
    alone = {"step": TREE["conditions"]["step"]}
    with pytest.raises(ConfigError, match="nothing to choose"):
        field(conditions=alone, design={"contexts": ["step_aligned"], "tokens": ["all"]})
    with pytest.raises(ValueError, match=r"design\.condition: grpo"):
        field(design={"condition": "grpo"})
    with pytest.raises(ValueError, match="did you mean step_aligned"):
        field(design={"contexts": ["step_alined"]})


def test_each_prompt_of_the_critic_comes_with_the_contexts_that_show_a_critique():
    critic = {
        "kind": "llm",
        "model": "m",
        "prompts": {"terse": "{{ trace }}", "long": "{{ trace }}"},
    }
    design = {"contexts": ["reference", "step_aligned"], "tokens": ["all"]}
    found = field(design=design, critic=critic)
    assert names(found) == ["step", "ref", "step_aligned-all-terse", "step_aligned-all-long"]
    assert [each.prompt for each in found.candidates] == [None, None, "terse", "long"]
    assert (found.prompts, found.usual) == (("terse", "long"), None)
    other = field(design=design, critic=critic | {"prompt": "long", "prompt_of": {"ref": "terse"}})
    assert names(other) == ["step", "ref", "reference-all", "step_aligned-all-terse"]
    assert [each.prompt for each in other.candidates] == ["long", "terse", "long", "terse"]
    search = search_experiment(Experiment.model_validate(TREE | {"critic": critic}), found)
    assert search.critic.prompt_of == {
        "step_aligned-all-terse": "terse", "step_aligned-all-long": "long",
        "diagnose/terse": "terse", "diagnose/long": "long",
    }  # fmt: skip
    assert search.critic.asking("diagnose/terse").template == "{{ trace }}"
    assert search.critic.asking("diagnose").template is None
    assert prompt_experiment(search, found, "terse").diagnose.contexts == ("step_aligned",)


@pytest.mark.parametrize(
    ("critic", "said"),
    [
        ({"prompt": "x"}, "has no prompt named x"),
        ({"prompts": {"x": "{{ reward }}"}}, "names reward; there are answer, correct"),
    ],
)
def test_a_mistaken_prompt_of_the_critic_is_a_message(critic, said):
    with pytest.raises(ValidationError, match=said):
        Experiment.model_validate(TREE | {"critic": {"kind": "llm", "model": "m"} | critic})
