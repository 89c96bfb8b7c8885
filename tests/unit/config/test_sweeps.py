from pathlib import Path

import jsonschema
import pytest

from sdcore.config import NAME_LENGTH, Experiment, Trial, load_experiment, read_settings
from sdcore.config.sweeps import next_value, trial_name, with_lists
from sdcore.errors import ConfigError
from sdcore.schedule import checkpoint_rounds
from tests.helpers.paths import EXPERIMENTS, QUICKSTART


def sweep(*overrides):
    return load_experiment(QUICKSTART, [f"conditions.{each}" for each in overrides])


def test_a_list_makes_one_condition_per_value():
    found = sweep("grpo.learning_rate=[2e-4, 4e-4]")
    assert list(found.conditions) == [
        "grpo-learning_rate-0.0002", "grpo-learning_rate-0.0004", "reference", "step_aligned",
    ]  # fmt: skip
    assert [found.conditions[name].learning_rate for name in found.trials] == [2e-4, 4e-4]
    assert {trial.family for trial in found.trials.values()} == {"grpo"}
    assert Experiment.model_validate_json(found.model_dump_json()) == found


def test_several_lists_make_their_grid_and_nested_settings_and_tables_can_be_lists():
    found = sweep("reference.teacher={kind='ema', decay=[0.9, 0.99]}", "reference.top_k=[5, 10]")
    assert [tuple(trial.values.items()) for trial in found.trials.values()] == [
        (("teacher.decay", decay), ("top_k", top_k)) for decay in (0.9, 0.99) for top_k in (5, 10)
    ]  # fmt: skip
    last = found.conditions["reference-decay-0.99-top_k-10"]
    assert (last.teacher.kind, last.teacher.decay, last.top_k) == ("ema", 0.99, 10)
    found = sweep("step_aligned.tokens=['until_error', {after=0, answer=0}]")
    weightings = [found.conditions[name].tokens for name in found.trials]
    assert [each.kind for each in weightings] == ["until_error", "regions"]
    assert list(found.trials)[1] == "step_aligned-tokens-after_0_answer_0"
    found = sweep("step_aligned.tokens={kind=['positions', 'relevance']}")
    assert [found.conditions[name].tokens.kind for name in found.trials] == [
        "positions", "relevance",
    ]  # fmt: skip


def test_a_setting_that_takes_lists_of_its_own_is_no_sweep(tmp_path: Path):
    (tmp_path / "layered.py").write_text(
        "from sdcore.config import ConditionSettings, objective\n"
        "class Layered(ConditionSettings):\n"
        "    layers: tuple[int, ...]\n"
        "@objective(Layered)\n"
        "class Own: pass\n"
    )
    text = QUICKSTART.read_text().partition("[conditions.grpo]")[0]
    file = tmp_path / "own.toml"
    own = 'objective = "layered:Own"\nlayers = [1, 2]\nlearning_rate = [1e-3, 2e-3]\n'
    file.write_text(f"{text}\n[conditions.own]\n{own}")
    found = load_experiment(file)
    assert [trial.values for trial in found.trials.values()] == [
        {"learning_rate": 1e-3}, {"learning_rate": 2e-3},
    ]  # fmt: skip
    assert {condition.layers for condition in found.conditions.values()} == {(1, 2)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.learning_rate=[]", r"empty or has a value twice[\s\S]*where: conditions.grpo"),
        ("grpo.learning_rate=[1e-3, 0.001]", r"a value twice"),
        ("grpo.learning_rate=[2, 1e-3]", r"grpo-learning_rate-2.learning_rate: .*less than or eq"),
        ("grpo.learning_rat=[1e-3]", r"grpo.learning_rat: no such setting, did you mean learning_"),
        ("grpo.objective=['grpo', 'distill']", r"objective of a condition cannot be a list"),
        ("base={objective='grpo', learning_rate=[1e-3]}", r"reserved names: base"),
        ("grpo.top=[1]", r"grpo.top: no such setting"),
        ("'grpo-clip_low-0.1'={objective='grpo', learning_rate=1e-3}", r"the name of a condition"),
        ("grpo.group_size=[2, 3, 4, 5, 6, 7, 8, 9, 10]", r"got: 9\s+expected: at most sweep.max_t"),
        ("grpo.learning_rate=[1979-05-27]", r"trials.grpo-learning_rate-1979-05-27.values"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_explained(override, message):
    with pytest.raises(ConfigError, match=message):
        sweep("grpo.clip_low=[0.1]" if "clip_low" in override else override, override)


def test_a_grid_beyond_all_bounds_is_refused_before_it_is_made():
    values = list(range(1, 10_001))
    condition = {"objective": "distill", "context": "reference", "learning_rate": 1e-3}
    tree = read_settings(QUICKSTART)
    for wanted in ({"top_k": values, "clip_value": values, "temperature": values}, {"top_k": []}):
        tree["conditions"] = {"huge": condition | wanted}
        with pytest.raises(ValueError, match=r"too many trials|is empty"):
            Experiment.model_validate(tree)
    for trials in (5, [1], "x"):
        with pytest.raises(ValueError, match="trials"):
            Experiment.model_validate(tree | {"conditions": {"a": condition}, "trials": trials})


def test_a_form_cannot_name_code_in_a_list_of_tables():
    for value in ("[{kind='evil:attribute'}]", "['all', 'evil:attribute']"):
        with pytest.raises(ConfigError, match="a form or the API cannot set this"):
            load_experiment(QUICKSTART, [f"conditions.grpo.tokens={value}"], trusted=False)
    with pytest.raises(ConfigError, match="a form or the API cannot set this"):
        override = "trials.grpo={family='grpo', values={tokens='evil:attribute'}}"
        load_experiment(QUICKSTART, [override], trusted=False)
    allowed = ["conditions.grpo.learning_rate=[1e-4, 2e-4]", "sweep.max_trials=3"]
    assert len(load_experiment(QUICKSTART, allowed, trusted=False).trials) == 2


def test_further_trials_are_part_of_the_same_run_and_change_no_checkpoint():
    found = sweep("grpo.group_size=[4, 8]")
    values = {"group_size": 2}
    trial = {"grpo-group_size-2": Trial(family="grpo", values=values, extension=1)}
    grown = found.with_trials(trial)
    assert grown.experiment_id == found.experiment_id
    assert list(grown.conditions)[:3] == ["grpo-group_size-4", "grpo-group_size-8", *trial]
    assert grown.conditions["grpo-group_size-2"].group_size == 2
    reference = found.conditions["reference"]
    assert checkpoint_rounds(grown, reference) == checkpoint_rounds(found, reference)
    alone = load_experiment(  # every condition samples at least 4, and the further trial only 2
        QUICKSTART,
        ["conditions={grpo={objective='grpo', learning_rate=1e-3, group_size=[4, 8]}}"],
    ).with_trials(trial)
    assert max(checkpoint_rounds(alone, alone.conditions["grpo-group_size-2"])) == 20


def test_a_further_trial_that_does_not_validate_is_refused():
    found = sweep("reference.teacher={kind='ema', decay=[0.45, 0.9]}")
    trial = Trial(family="reference", values={"teacher.decay": 1.8}, extension=1)
    with pytest.raises(ConfigError, match="less than 1"):
        found.with_trials({"reference-decay-1.8": trial})


def test_lists_change_the_run_and_files_without_them_stay_what_they_were():
    plain = load_experiment(QUICKSTART)
    assert load_experiment(QUICKSTART, ["sweep.max_trials=3"]).fingerprint == plain.fingerprint
    one, other = sweep("grpo.learning_rate=[1e-3]"), sweep("grpo.learning_rate=[1e-3, 2e-3]")
    assert len({plain.fingerprint, one.fingerprint, other.fingerprint}) == 3


@pytest.mark.parametrize(
    ("values", "up", "expected"),
    [
        ([2e-4, 4e-4, 8e-4], True, 1.6e-3),
        ([2e-4, 4e-4, 8e-4], False, 1e-4),
        ([1e-4, 3e-4], True, 9e-4),  # 3e-4 * (3e-4 / 1e-4) is 0.0008999999999999998
        ([1e-4, 3e-4, 1.2e-3], True, 4.8e-3),  # by the factor at that edge
        ([4, 8], True, 16),
        ([4, 8], False, 2),
        ([2, 3], True, None),  # 4.5 is no whole number
        ([1, 2], False, None),
        ([0.0, 0.5, 1.0], True, 2.0),
        ([0.0, 0.5], True, None),  # no factor leads from 0 to 0.5
        ([0.0, 0.5], False, None),
        ([1e-3], True, None),
    ],
)
def test_the_next_value_of_a_grid_by_hand(values, up, expected):
    assert next_value(values, up=up) == expected


def test_names_of_trials_are_names_of_files_and_differ():
    assert trial_name("grpo", {"learning_rate": 4e-4}) == "grpo-learning_rate-0.0004"
    long = [trial_name("a" * 60, {"learning_rate": value}) for value in (1e-3, 2e-3)]
    odd = [trial_name("a", {"context": value}) for value in ("own:one", "own_one")]
    assert len({*long, *odd}) == 4 and max(map(len, long)) <= NAME_LENGTH
    assert ":" not in "".join(odd)
    with pytest.raises(ConfigError, match="same name"):
        sweep("grpo.learning_rate=[1e-3, '0.001']")


def test_editors_accept_lists_in_conditions_only():
    schema = with_lists(Experiment.model_json_schema())
    tree = read_settings(EXPERIMENTS / "quickstart-rates.toml")
    jsonschema.validate(tree, schema)
    for wrong in ({"training": {"rounds": [1, 2]}}, {"name": ["a"]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tree | wrong, schema)


def test_the_shipped_rates_are_four_trials_for_each_condition_of_the_quickstart():
    rates = load_experiment("quickstart-rates")
    counts = {family: len(trials) for family, trials in rates.families.items()}
    assert counts == dict.fromkeys(load_experiment("quickstart").conditions, 4)
