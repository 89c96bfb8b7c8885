"""prefect.yaml and the forms: every experiment is deployed, every bound reaches the form."""

import importlib

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows import forms
from flows.servers import deployments
from flows.servers.standing import PROJECT
from sdcore.config import load_experiment
from sdcore.config.shipped import experiment_file
from sdcore.errors import ConfigError

EXPERIMENTS = PROJECT / "deployments" / "experiments"


@pytest.fixture(scope="module")
def deployed():
    return {deployment.name: deployment for deployment in deployments.deployments()}


def test_every_shipped_experiment_has_a_deployment_that_is_off(deployed):
    assert {path.stem for path in EXPERIMENTS.glob("*.toml")} <= deployed.keys()
    for deployment in deployed.values():
        assert deployment.tags and deployment.description and deployment.schedules
        assert not any(schedule.active for schedule in deployment.schedules)
        assert deployment.concurrency_limit == 1


def test_every_flow_has_a_deployment(deployed):
    modules = {path.stem for path in (PROJECT / "flows").glob("*.py")}
    flows = {
        name
        for name in modules
        if isinstance(getattr(importlib.import_module(f"flows.{name}"), name, None), Flow)
    }
    assert {deployment.flow_name.replace("-", "_") for deployment in deployed.values()} == flows


def test_deployed_experiments_are_the_shipped_files(deployed):
    for name, deployment in deployed.items():
        if deployment.flow_name == "compare-contexts":
            assert experiment_file(deployment.parameters["experiment"]).stem == name


def test_the_form_has_descriptions_choices_and_bounds():
    schema = parameter_schema(forms.compare_contexts)
    assert all(each["description"] for each in schema.properties.values())
    training = schema.definitions["Training"]["properties"]
    assert training["rounds"].items() >= {"minimum": 1, "type": "integer"}.items()
    assert training["rounds"]["description"] == "at least 1"
    assert training["schedule"]["enum"] == ["constant", "linear", "cosine"]
    assert training["warmup_steps"]["minimum"] == 0
    band = schema.definitions["Band"]["properties"]
    assert band["accuracy_below"]["description"].startswith("bound of avg@samples; ")


def test_the_form_is_empty_and_readable_at_any_depth():
    # Every field is shown empty, which means "as in the file", and there is no other None.
    definitions = parameter_schema(forms.compare_contexts).definitions
    assert {"Model", "Training", "Lora", "Warmup", "Diagnose"} <= definitions.keys()
    fields = [field for each in definitions.values() for field in each["properties"].values()]
    assert not any("default" in field or "anyOf" in field for field in fields)
    assert all(field.get("title") or "$ref" in field for field in fields)


def test_changes_become_overrides_of_what_was_filled_in_only():
    filled = {"seeds": [1, 2], "training": {"rounds": 3},
              "model": {"name": 'a "b"'}}  # fmt: skip
    changes = forms.Changes.model_validate(filled)
    assert changes.overrides() == [
        "seeds=[1, 2]", 'model.name="a \\"b\\""', "training.rounds=3",
    ]  # fmt: skip
    settings = load_experiment(EXPERIMENTS / "quickstart.toml", changes.overrides())
    assert settings.seeds == (1, 2) and settings.model.name == 'a "b"'
    assert settings.training.rounds == 3 and settings.training.schedule == "linear"


def test_a_switch_has_three_choices_and_none_is_made_unasked():
    # Prefect's classic form sends an untouched check box as false; it sends no untouched choice
    definitions = parameter_schema(forms.compare_contexts).definitions.values()
    fields = {name: f for each in definitions for name, f in each["properties"].items()}
    assert not [name for name, field in fields.items() if field.get("type") == "boolean"]
    switches = [name for name, f in fields.items() if "as in the file" in f.get("enum", ())]
    assert {"structured", "text_answers", "student_thinking", "sharded"} <= set(switches)
    assert all(fields[name]["enum"] == ["as in the file", "yes", "no"] for name in switches)


@pytest.mark.parametrize(
    ("choice", "overrides"),
    [
        ("yes", ["training.activation_checkpointing=true"]),
        ("no", ["training.activation_checkpointing=false"]),
        ("as in the file", []),
    ],
)
def test_a_switch_becomes_a_setting_only_where_it_was_set(choice, overrides):
    filled = {"training": {"activation_checkpointing": choice}}
    assert forms.Changes.model_validate(filled).overrides() == overrides


def test_a_critic_whose_switch_stays_as_in_the_file_is_no_critic():
    assert (
        forms.Changes.model_validate({"critic": {"structured": "as in the file"}}).overrides() == []
    )


def test_no_flow_of_a_form_renames_its_run():
    flows = [forms.compare_contexts, forms.diagnose, forms.critic_eval, forms.build_tiny_solver]
    assert [flow.flow_run_name for flow in flows] == [None] * 4


def test_conditions_a_critic_and_contexts_are_filled_in_too():
    own = 'Look "here":\n{{ trace }} 🙂'
    filled = {
        "conditions": [
            {"name": "grpo", "clip_low": 0.1},
            {"name": "ema.9", "objective": "distill", "context": "own", "learning_rate": 1e-4,
             "teacher": {"kind": "ema"}},
        ],
        "critic": {"model": "judge", "max_budget": 2.5},
        "contexts": {"own": own},
    }  # fmt: skip
    changes = forms.Changes.model_validate(filled)
    settings = load_experiment(EXPERIMENTS / "quickstart.toml", changes.overrides())
    before = load_experiment(EXPERIMENTS / "quickstart.toml")
    assert settings.conditions.keys() == before.conditions.keys() | {"ema.9"}
    assert settings.conditions["grpo"] == before.conditions["grpo"].model_copy(
        update={"clip_low": 0.1}
    )
    assert settings.conditions["ema.9"].teacher.kind == "ema"
    assert settings.critic.kind == "llm" and settings.critic.max_budget == 2.5
    assert settings.contexts == {"own": own}


def test_the_form_refuses_what_the_experiment_refuses():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        forms.Changes.model_validate({"training": {"rounds": 0}})
    with pytest.raises(ValueError, match="Extra inputs"):
        forms.Changes.model_validate({"training": {"round": 1}})
    twice = forms.Changes.model_validate({"conditions": 2 * [{"name": "grpo", "group_size": 4}]})
    with pytest.raises(ConfigError, match="listed twice"):
        twice.overrides()
