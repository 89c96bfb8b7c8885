"""What may be added to a run, and that the run keeps its id and the rounds it is scored at."""

import pytest
from pydantic import ValidationError

from sdcore.config import Experiment, load_experiment
from sdcore.schedule import checkpoint_rounds, lineages
from tests.helpers.paths import QUICKSTART

MASKED = (
    "conditions.masked={objective='distill', context='step_aligned', tokens='until_error', "
    "learning_rate=2e-4}"
)
CHEAP = "conditions.cheap={objective='grpo', group_size=2, learning_rate=2e-4}"
ALONE = "conditions={grpo={objective='grpo', group_size=8, learning_rate=2e-4}}"


def quickstart(*overrides):
    return load_experiment(QUICKSTART, overrides)


def test_conditions_and_seeds_are_part_of_the_run_that_they_are_added_to():
    run, more = quickstart(), quickstart(MASKED, "seeds=[5, 2, 1, 0]")
    joined = more.part_of(run)
    assert joined.experiment_id == run.experiment_id != more.experiment_id
    assert joined.added.conditions == ("masked",)
    assert joined.seeds == (0, 1, 2, 5) and joined.added.seeds == (5,)  # the first stays the first
    assert {*lineages(joined)} == {*lineages(more)}
    again = Experiment.model_validate_json(joined.model_dump_json())
    assert again.experiment_id == run.experiment_id and again == joined


def test_a_run_is_extended_again_and_again_and_never_shrinks():
    run = quickstart("seeds=[0]")
    once = quickstart("seeds=[0]", MASKED).part_of(run)
    twice = quickstart("seeds=[0, 3]").part_of(once)
    assert twice.experiment_id == run.experiment_id
    assert "masked" in twice.conditions and twice.seeds == (0, 3)
    assert run.part_of(twice) == twice


def test_a_run_with_fewer_conditions_or_seeds_is_another_run():
    run = quickstart(MASKED)
    assert quickstart().part_of(run) is None
    assert quickstart(MASKED, "seeds=[0]").part_of(run) is None
    assert quickstart("seeds=[1, 0, 2]", MASKED).part_of(run) is not None


@pytest.mark.parametrize(
    "change",
    [
        "training.rounds=3", "problems.test=7", "model.dtype=bfloat16",
        "conditions.reference.learning_rate=1e-5", "conditions.masked.learning_rate=1e-5",
        "conditions.masked.tokens='all'", "critic={kind='llm', model='builtin:tiny-solver'}",
    ],
)  # fmt: skip
def test_any_other_change_makes_another_run(change):
    run = quickstart(MASKED).part_of(quickstart())
    assert quickstart(MASKED, change).part_of(run) is None


def test_templates_come_with_the_conditions_that_show_them_and_stay_as_they_are():
    run = quickstart("contexts.own='It is {{ reference }}.'")
    hint = "conditions.hint={objective='distill', context='hint', learning_rate=2e-4}"
    texts = ["contexts.own='It is {{ reference }}.'", "contexts.hint='Mind {{ critique }}.'"]
    joined = quickstart(hint, *texts).part_of(run)
    assert joined.experiment_id == run.experiment_id and joined.added.contexts == ("hint",)
    assert quickstart(hint, texts[1]).part_of(run) is None  # lacks a template of the run
    other = quickstart(hint, texts[0], "contexts.hint='Look: {{ critique }}.'")
    assert other.part_of(run).experiment_id == run.experiment_id
    assert other.part_of(joined) is None


def test_what_is_added_changes_no_checkpoint_of_what_is_trained():
    run = quickstart(ALONE)
    joined = quickstart(ALONE, CHEAP).part_of(run)
    grpo = run.conditions["grpo"]
    assert checkpoint_rounds(joined, grpo) == checkpoint_rounds(run, grpo)
    at_once = quickstart(ALONE, CHEAP)
    assert checkpoint_rounds(at_once, grpo) != checkpoint_rounds(run, grpo)


def test_a_sweep_is_added_whole_and_a_grid_takes_no_values():
    run, sweep = quickstart(), "conditions.masked.learning_rate=[1e-4, 2e-4]"
    joined = quickstart(MASKED, sweep).part_of(run)
    assert joined.experiment_id == run.experiment_id and len(joined.added.conditions) == 2
    wider = quickstart(MASKED, "conditions.masked.learning_rate=[1e-4, 2e-4, 4e-4]")
    assert wider.part_of(joined) is None  # sweeps extend their grids by themselves
    assert wider.part_of(quickstart(MASKED, sweep)) is None
    assert quickstart("conditions.grpo.group_size=[4, 8]").part_of(run) is None


@pytest.mark.parametrize(
    "added",
    ["{seeds=[0]}", "{seeds=[9]}", "{conditions=['none']}",
     "{conditions=['grpo', 'reference', 'step_aligned']}"],
)  # fmt: skip
def test_something_is_there_before_anything_is_added(added):
    with pytest.raises((ValidationError, ValueError), match="added"):
        quickstart(f"added={added}")
