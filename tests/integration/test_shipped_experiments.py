"""Every shipped experiment file runs through all its stages, as `sdcore run FILE --scale smoke`."""

import os
import tomllib

import polars as pl
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.commands import main
from sdcore.config import DistillConfig, Experiment
from sdcore.config.shipped import shipped_names
from sdcore.store.database import Store
from tests.helpers.paths import EXPERIMENTS
from tests.helpers.runs import tables

SAME = {"paper-1gpu": "paper"}  # files that differ in their use of memory only
# With what other tests run; gsm8k-critic has the source of gsm8k.
ALIKE = {
    *SAME, "gsm8k", "laptop-long", "laptop-rates", "predict", "quickstart", "quickstart-rates",
    "tokens", "weightings",
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(prefect, tmp_path_factory):
    """One for all files, without any model of this machine but those that ship."""
    folder = tmp_path_factory.mktemp("smoke")
    server = {name: os.environ[name.name] for name in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with pytest.MonkeyPatch.context() as patch, temporary_settings(server):
        patch.setenv("SDCORE_CACHE", str(folder / "cache"))
        yield folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.night if name in ALIKE else ())
        for name in shipped_names()
    ],
)
def test_a_shipped_experiment_runs_through_all_its_stages(name, workspace):
    main.run(name, workspace=workspace, scale=main.Scale.SMOKE)
    (stored,) = (
        Store(workspace / "sdcore.duckdb").rows("experiments", name=f"{name}-smoke").to_dicts()
    )
    planned = Experiment.model_validate_json(stored["config"])
    own = {"experiment_id": stored["experiment_id"]}
    rows = {table: frame.filter(**own) for table, frame in tables(workspace).items()}
    lost = set(rows["trials"].filter(~pl.col("chosen"))["trial"])
    for condition, settings in planned.conditions.items():
        updates = rows["updates"].filter(condition=condition)
        assert updates["round"].to_list() == [0]
        distils = isinstance(settings, DistillConfig)
        assert updates["first_token_kl"].is_null().any() != distils
        contexts = rows["contexts"].filter(condition=condition)
        assert set(contexts["context"]) == ({settings.context} if distils else set())
        scores = rows["scores"].filter(condition=condition)
        splits = {"validation"} if condition in lost else {"validation", "test"}
        assert set(scores["split"]) == splits and set(scores["round"]) == {1}
    assert len(rows["comparisons"]) > 0
    assert (len(rows["difficulties"]) > 0) == (planned.problems.band is not None)
    assert bool((rows["updates"]["round"] < 0).any()) == (planned.warmup is not None)
    critiques = rows["critiques"]
    assert (critiques["valid"].all() and len(critiques) > 0) or planned.critic is None


@pytest.mark.parametrize("name", SAME)
def test_files_that_are_the_same_differ_in_their_use_of_memory_only(name):
    one, other = (
        tomllib.loads((EXPERIMENTS / f"{file}.toml").read_text("utf-8"))
        for file in (name, SAME[name])
    )
    for settings in (one, other):
        del settings["name"], settings["description"], settings["engine"]
        settings["training"].pop("activation_checkpointing", None)
    assert one == other
