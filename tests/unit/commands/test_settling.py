"""`engine.kind = "auto"` is settled once, and a run keeps what it was started with."""

from contextlib import closing

import pytest

from flows import settling
from flows.settling import settled
from sdcore.config import load_experiment
from sdcore.engines.choosing import Choice
from sdcore.errors import ConfigError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import run_row
from tests.helpers.paths import QUICKSTART


@pytest.fixture
def machine(monkeypatch):
    """Say which engine a new run takes."""

    def offers(kind):
        monkeypatch.setattr(settling, "chosen_here", lambda _: Choice(kind, "the test says so"))

    return offers


def file(*overrides):
    return load_experiment(QUICKSTART, ["engine.kind=auto", *overrides])


def start(root, experiment):
    row = run_row() | {
        "experiment_id": experiment.experiment_id, "name": experiment.name,
        "config": experiment.model_dump_json(),
    }  # fmt: skip
    with closing(Store(root / "sdcore.duckdb")) as store:
        store.append_missing(experiments=TABLES["experiments"].frame([row]))


def test_a_new_run_takes_what_the_machine_offers_and_says_so_once(tmp_path, machine, capsys):
    machine("vllm")
    made = settled(file(), tmp_path)
    assert made.engine.kind == "vllm"
    assert made.experiment_id == load_experiment(QUICKSTART, ["engine.kind=vllm"]).experiment_id
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "Engine: vllm, since the test says so (engine.kind = auto)"
    assert settled(made, tmp_path) is made and not capsys.readouterr().err


@pytest.mark.parametrize(("began", "offered"), [("transformers", "vllm"), ("vllm", "transformers")])
def test_a_run_goes_on_with_its_engine_on_another_machine(
    tmp_path, machine, capsys, began, offered
):
    machine(began)
    first = settled(file(), tmp_path)
    start(tmp_path, first)
    machine(offered)
    capsys.readouterr()
    assert settled(file(), tmp_path).experiment_id == first.experiment_id
    assert f"{first.experiment_id} was started with it" in capsys.readouterr().err
    assert settled(file("training.rounds=3"), tmp_path).engine.kind == offered  # another run


def test_a_run_of_each_engine_is_continued_where_its_engine_is_offered(tmp_path, machine):
    for kind in ("transformers", "vllm"):
        machine(kind)
        start(tmp_path, file().sampled_by(kind))
    for kind in ("transformers", "vllm"):
        machine(kind)
        assert settled(file(), tmp_path).engine.kind == kind


def test_an_extended_run_keeps_its_engine_and_says_what_is_added(tmp_path, machine, capsys):
    machine("vllm")
    first = settled(file(), tmp_path)
    start(tmp_path, first)
    machine("transformers")
    extended = settled(file("seeds=[0, 1, 2, 5]"), tmp_path, extend=True)
    assert extended.experiment_id == first.experiment_id and extended.engine.kind == "vllm"
    assert f"added to {first.experiment_id}: seed 5" in capsys.readouterr().err


def test_settings_that_an_earlier_version_stored_are_no_obstacle(tmp_path, machine):
    machine("transformers")
    row = run_row() | {"name": "quickstart", "config": '{"name": "quickstart"}'}
    with closing(Store(tmp_path / "sdcore.duckdb")) as store:
        store.append_missing(experiments=TABLES["experiments"].frame([row]))
    assert settled(file(), tmp_path).engine.kind == "transformers"


def test_a_run_has_no_id_before_its_engine_is_settled():
    with pytest.raises(ConfigError, match="engine is settled"):
        _ = file().fingerprint
    plain = load_experiment(QUICKSTART)
    assert file().sampled_by("transformers").fingerprint == plain.fingerprint
    assert plain.sampled_by("vllm").fingerprint != plain.fingerprint
