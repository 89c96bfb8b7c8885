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
    assert training["rounds"]["description"] == "at most 100000; at least 1"
    assert training["schedule"]["enum"] == ["constant", "linear", "cosine"]
    assert training["warmup_steps"]["minimum"] == 0
    band = schema.definitions["Band"]["properties"]
    assert band["accuracy_below"]["description"].startswith("avg@samples is below this; ")


def test_the_form_is_empty_and_readable_at_any_depth():
    # Every field is shown empty, which means "as in the file", and there is no other None.
    definitions = parameter_schema(forms.compare_contexts).definitions
    assert {"Model", "Training", "Lora", "Warmup", "Diagnose"} <= definitions.keys()
    fields = [field for each in definitions.values() for field in each["properties"].values()]
    assert not any("default" in field or "anyOf" in field for field in fields)
    assert all(field.get("title") or "$ref" in field for field in fields)


def test_changes_become_overrides_of_what_was_filled_in_only():
    filled = {"seeds": [1, 2], "training": {"rounds": 3},
              "prompts": {"system": 'a "b"'}}  # fmt: skip
    changes = forms.Changes.model_validate(filled)
    assert changes.overrides() == [
        "seeds=[1, 2]", 'prompts.system="a \\"b\\""', "training.rounds=3",
    ]  # fmt: skip
    settings = load_experiment(EXPERIMENTS / "quickstart.toml", changes.overrides())
    assert settings.seeds == (1, 2) and settings.prompts.system == 'a "b"'
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


def test_conditions_a_critic_and_contexts_are_filled_in_too(tmp_path):
    judged = tmp_path / "judged.toml"
    critic = '[critic]\nkind = "llm"\nmodel = "judge"\nprice_out = 1\nbase_url = "http://a/v1"\n'
    judged.write_text((EXPERIMENTS / "quickstart.toml").read_text() + critic)
    own = 'Look "here":\n{{ trace }} 🙂'
    filled = {
        "conditions": [
            {"name": "grpo", "clip_low": 0.1},
            {"name": "ema.9", "objective": "distill", "context": "own", "learning_rate": 1e-4,
             "teacher": {"kind": "ema"}},
        ],
        "critic": {"attempts": 2, "max_budget": 2.5},
        "contexts": {"own": own},
    }  # fmt: skip
    changes = forms.Changes.model_validate(filled)
    settings = load_experiment(judged, changes.overrides(), trusted=False)
    before = load_experiment(judged)
    assert settings.conditions.keys() == before.conditions.keys() | {"ema.9"}
    assert settings.conditions["grpo"] == before.conditions["grpo"].model_copy(
        update={"clip_low": 0.1}
    )
    assert settings.conditions["ema.9"].teacher.kind == "ema"
    assert settings.critic == before.critic.model_copy(update={"attempts": 2, "max_budget": 2.5})
    assert settings.contexts == {"own": own}


def test_the_form_refuses_what_the_experiment_refuses():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        forms.Changes.model_validate({"training": {"rounds": 0}})
    with pytest.raises(ValueError, match="Extra inputs"):
        forms.Changes.model_validate({"training": {"round": 1}})
    twice = forms.Changes.model_validate({"conditions": 2 * [{"name": "grpo", "group_size": 4}]})
    with pytest.raises(ConfigError, match="listed twice"):
        twice.overrides()


HARMFUL = [
    "engine.python=/bin/true", "engine.'python'=/bin/true", "engine . python=/bin/true",
    "engine.urls=['http://evil.example']", "engine.arguments=['--chat-template=x']",
    "engine.options={a=1}", "engine.options.a=1", "engine={python='/bin/true'}",
    "engine.kind=evil:Engine", "critic.base_url=http://evil.example/v1",
    "critic.api_key_env=HOME", "critic.api_key_block=other-key", "critic.model=/tmp/model",
    "critic={kind='llm', model='m', base_url='http://evil.example/v1'}", "critic.kind=evil:Critic",
    "critic.fallback=evil:context", "critic.own_setting=1", "model.name=/tmp/model",
    "model={name='/tmp/model'}", "modules=/tmp", "plugins={}", "plugins.x=1", "grader=evil:grade",
    "problems.source=evil:rows", "problems.options={file='/etc/passwd'}",
    "diagnose.contexts=['none', 'evil:context']", "conditions.grpo.objective=evil:Objective",
    "conditions.reference.context=evil:context", "conditions.'a.b'.context='evil:context'",
    "conditions.reference.tokens=evil:weights", "conditions.reference.tokens.kind=evil:weights",
    "conditions.reference.tokens={kind='evil:weights'}", "conditions.reference.tokens.own=1",
    "conditions.grpo={objective='evil:Objective'}", "conditions.grpo.own_setting=1", "nonsense=1",
]  # fmt: skip


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a trace when it is imported, where an experiment file is."""
    trace = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    return trace


@pytest.mark.parametrize("override", HARMFUL)
def test_what_names_programs_servers_code_or_keys_comes_from_a_file_alone(override, evil):
    for flow in (forms.compare_contexts, forms.diagnose, forms.critic_eval):
        with pytest.raises(ConfigError, match="a form or the API cannot set this") as raised:
            flow.fn("quickstart", overrides=[override])
    assert override in str(raised.value) and not evil.exists()
    assert not (evil.parent / "runs").exists()


def test_the_forms_have_no_field_for_it_and_take_no_value():
    schema = parameter_schema(forms.compare_contexts)
    fields = {name for each in schema.definitions.values() for name in each["properties"]}
    secret = {"python", "urls", "arguments", "options", "base_url", "api_key_env", "api_key_block",
              "modules", "plugins", "grader"}  # fmt: skip
    assert not fields & secret
    assert "name" not in schema.definitions["Model"]["properties"]
    assert "model" not in schema.definitions["Critic"]["properties"]
    for section, name in (("engine", "python"), ("critic", "base_url"), ("model", "name")):
        with pytest.raises(ValueError, match="Extra inputs"):
            forms.Changes.model_validate({section: {name: "x"}})


def test_what_a_form_may_set_passes_and_a_file_may_set_everything(tmp_path):
    harmless = ["training.rounds=3", "engine.kind=vllm", "problems.source=arithmetic",
                "conditions.grpo.group_size=4", "contexts.mine='Q: {{ question }}'",
                "conditions.new.objective=distill", "conditions.new.context=mine",
                "conditions.new.learning_rate=1e-4", "conditions.new.tokens=until_error",
                "conditions.reference.tokens.kind=regions", "conditions.reference.tokens.after=0",
                "diagnose.contexts=['none', 'mine']"]  # fmt: skip
    settings = load_experiment("quickstart", harmless, trusted=False)
    assert settings.conditions["new"].context == "mine" and settings.engine.kind == "vllm"
    assert settings.conditions["reference"].tokens.after == 0
    trusted = load_experiment("quickstart", ["engine.python=/usr/bin/python3"])
    assert str(trusted.engine.python) == "/usr/bin/python3"


@pytest.mark.parametrize("folder", ["/tmp/elsewhere", "../elsewhere", ".", "a/../.."])
def test_the_form_of_the_tiny_solver_writes_into_the_workspace_only(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SDCORE_WORKSPACE", str(tmp_path))
    with pytest.raises(ConfigError, match="into the workspace only"):
        forms.build_tiny_solver.fn(folder)
