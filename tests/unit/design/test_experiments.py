"""The experiments of a search follow from the file, and its winner is a file again."""

import tomllib

import polars as pl

from sdcore.config import Experiment, Limits, load_experiment
from sdcore.design.candidates import enumerate_field
from sdcore.design.experiments import (
    as_file,
    confirmation_experiment,
    design_id,
    search_experiment,
    winner_experiment,
)
from sdcore.schedule import checkpoint_rounds
from tests.helpers.paths import QUICKSTART

FILE = load_experiment(QUICKSTART)
SOLVED = pl.Series(["a worked solution"])
FIELD = enumerate_field(FILE, SOLVED)
PAIR = [FIELD.baseline, next(c for c in FIELD.candidates if c.name == "step_aligned-until_error")]


def test_the_candidates_are_the_conditions_of_one_run_with_a_checkpoint_at_every_rung():
    search = search_experiment(FILE, FIELD)
    assert list(search.conditions) == [each.name for each in FIELD.candidates]
    assert search.seeds == FILE.seeds and search.problems == FILE.problems
    for condition in search.conditions.values():
        assert {5, 10, 20} <= {*checkpoint_rounds(search, condition)}
    assert search.search_of == FILE.name and confirmation_experiment(FILE, PAIR).search_of is None
    assert set(search.diagnose.contexts) == {each.context for each in FIELD.candidates}


def test_the_confirmation_has_the_files_budget_and_seeds_of_its_own():
    run = confirmation_experiment(FILE, PAIR)
    assert list(run.conditions) == ["step_aligned", "step_aligned-until_error"]
    assert run.seeds == (3, 4, 5, 6)
    assert (run.training, run.evaluation, run.problems) == (
        FILE.training, FILE.evaluation, FILE.problems,
    )  # fmt: skip


def test_the_winners_file_is_what_was_meant(tmp_path):
    meant = winner_experiment(FILE, PAIR, 'It says "so"; +4.5 points')
    path = tmp_path / "winner.toml"
    path.write_text(as_file(meant), "utf-8")
    read = load_experiment(path)
    assert read.fingerprint == meant.fingerprint and read.description == meant.description
    assert read.conditions == meant.conditions and read.seeds == FILE.seeds
    written = tomllib.loads(path.read_text("utf-8"))
    assert "design" not in written and "temperature" not in written["sampling"]


def test_the_winners_file_finds_the_code_and_templates_of_the_file(tmp_path):
    (tmp_path / "my_masks.py").write_text(
        "from sdcore.config import weighting\n\n\n"
        "@weighting()\ndef first(tokens):\n    return tokens.regions_T\n"
    )
    text = QUICKSTART.read_text("utf-8") + "\n[contexts]\nown = 'It is {{ reference }}.'\n"
    (tmp_path / "my.toml").write_text(text)
    overrides = ['design.tokens=["my_masks:first"]', 'design.contexts=["own"]']
    file = load_experiment(tmp_path / "my.toml", overrides)
    field = enumerate_field(file, SOLVED)
    pair = [field.baseline, field.candidates[-1]]
    assert pair[1].name == "own-my_masks-first"
    meant = winner_experiment(file, pair, "")
    (tmp_path / "reports").mkdir()
    path = tmp_path / "reports" / "winner.toml"
    path.write_text(as_file(meant), "utf-8")
    read = load_experiment(path)
    assert read.fingerprint == meant.fingerprint and "weighting my_masks:first" in read.plugins


def test_a_search_is_another_one_when_its_rules_change_but_not_its_money():
    def changed(**design):
        return Experiment.model_validate(FILE.model_dump(mode="json") | {"design": design})

    assert design_id(changed(max_cost=3.0, max_critic_tokens=9)) == design_id(FILE)
    assert design_id(changed(max_tokens=10**9)) != design_id(FILE)
    assert changed(eta=3).experiment_id == FILE.experiment_id  # the run itself is the same


def test_the_critic_may_cost_no_more_than_the_search(tmp_path):
    llm = {"kind": "llm", "model": "m", "price_out": 1.0, "max_budget": 5.0}
    llm["base_url"] = "http://127.0.0.1:1/v1"
    tree = FILE.model_dump(mode="json") | {"critic": llm, "plugins": {}}

    def limits(**design):
        file = Experiment.model_validate(tree | {"design": design})
        return search_experiment(file, enumerate_field(file, SOLVED)).critic.limits

    assert limits() == Limits(5.0)
    assert limits(max_cost=2.0) == Limits(2.0) and limits(max_cost=9.0) == Limits(5.0)
    assert limits(max_critic_tokens=700) == Limits(5.0, 700)


def test_the_trials_of_a_file_with_lists_are_candidates_like_its_conditions():
    file = load_experiment(QUICKSTART, ["conditions.reference.learning_rate=[2e-4, 4e-4]"])
    field = enumerate_field(file, SOLVED)
    search = search_experiment(file, field)
    trials = {"reference-learning_rate-0.0002", "reference-learning_rate-0.0004"}
    assert trials <= search.conditions.keys() and search.trials == {}
