import base64
from urllib.parse import quote

import fsspec
import polars as pl
import pytest
from datasets import load_dataset

from sdcore.errors import DataError, SdcoreError
from sdcore.keys import Key
from sdcore.store.database import Store
from sdcore.store.export import export
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, fill, problem

RUN = EXPERIMENT.experiment_id


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb"))


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "new"
    return folder, export(store, RUN, str(folder))


def test_every_row_of_the_run_is_there_with_its_types(store, exported):
    folder, written = exported
    for name, table in TABLES.items():
        stored = store.rows(name, experiment_id=RUN)
        assert written.get(name, 0) == len(stored)
        if len(stored):
            found = pl.read_parquet(folder / "data" / name / "**" / "*.parquet")
            assert found.sort(table.key).equals(stored.sort(table.key)), name


def test_files_are_parted_by_condition_and_seed(exported):
    folder, _ = exported
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    assert [path.removeprefix("data/rollouts/") for path in found if "rollouts" in path] == [
        "base/seed-0.parquet", "grpo/seed-0.parquet", "grpo/seed-1.parquet",
        "reference/seed-0.parquet", "reference/seed-1.parquet", "step_aligned/seed-0.parquet",
        "step_aligned/seed-1.parquet",
    ]  # fmt: skip
    assert "data/problems/all.parquet" in found


def test_the_folder_is_a_dataset(store, exported, tmp_path):
    folder, written = exported
    loaded = load_dataset(str(folder), "rollouts", split="rows", cache_dir=str(tmp_path))
    assert len(loaded) == written["rollouts"]
    assert set(loaded.column_names) == set(TABLES["rollouts"].dtypes)
    assert loaded[0]["prompt_ids"] == [1]
    card = (folder / "README.md").read_text()
    assert "| sampling_seed | BIGINT | seed of this sample's random numbers |" in card


def test_an_address_is_written_through_its_file_system(store):
    written = export(store, RUN, "memory://bucket/run")
    files = fsspec.filesystem("memory")
    with files.open("/bucket/run/data/scores/grpo/seed-1.parquet") as file:
        found = pl.read_parquet(file)
    assert found.sort("score_id").equals(
        store.rows("scores", condition="grpo", seed=1).sort("score_id")
    )
    assert written["scores"] == len(store.rows("scores"))


@pytest.mark.parametrize("target", ["nonsense://bucket/x", "memory://taken"])
def test_an_address_that_cannot_be_used_is_refused(store, target):
    fsspec.filesystem("memory").pipe("/taken/file", b"x")
    with pytest.raises(SdcoreError, match=r"cannot be reached|there already"):
        export(store, RUN, target)


def test_a_file_that_cannot_be_written_is_named(store, tmp_path, monkeypatch):
    def full(frame, file):
        raise pl.exceptions.ComputeError("No space left on device")  # as Polars has it

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(SdcoreError, match="not whole") as caught:
        export(store, RUN, str(tmp_path / "out"))
    assert "No space left" in str(caught.value.got)
    assert caught.value.where.startswith(str(tmp_path / "out")) and caught.value.fix


TOKEN = "sk-1234567890"
LEAKS = {
    "plain": f"Bearer {TOKEN}",
    "JSON": "".join(f"\\u{ord(c):04x}" for c in TOKEN),
    "URL": quote(f"?key={TOKEN}!", safe="").replace("s", "%73"),
    "base64": base64.b64encode(f"me:{TOKEN}".encode()).decode(),
}


def leaked(tmp_path, text):
    store = Store(tmp_path / "sdcore.duckdb")
    rows = [problem("p", "train", 0), problem("q", "train", 1, question=f"before {text} after")]
    store.append_missing(problems=TABLES["problems"].frame(rows))
    return store


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS)
def test_a_secret_of_the_environment_is_never_exported(tmp_path, monkeypatch, text):
    monkeypatch.setenv("CRITIC_API_KEY", f"{TOKEN}\n")
    with pytest.raises(DataError, match=r"CRITIC_API_KEY[\s\S]*problems.question.*q") as raised:
        export(leaked(tmp_path, text), RUN, str(tmp_path / "out"))
    assert TOKEN not in str(raised.value) and text not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_runs_own_key_is_looked_for_whatever_its_variable_is_called(tmp_path):
    store = leaked(tmp_path, LEAKS["URL"])
    with pytest.raises(DataError, match=r"\$CRITIC[\s\S]*problems.question"):
        export(store, RUN, str(tmp_path / "out"), {"$CRITIC": Key(TOKEN)})


@pytest.mark.parametrize(
    "text",
    [
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30",
        '{"Authorization": "Basic dXNlcjpzZWNyZXQtdG9rZW4="}',
        "sk-proj-0123456789abcdefghij",
        f"hf_{'aB3' * 12}",
        f"ghp_{'x1' * 20}",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_what_looks_like_a_key_is_noticed_when_nobody_knows_it_any_more(tmp_path, text):
    with pytest.raises(DataError, match="looks like a key"):
        export(leaked(tmp_path, text), RUN, str(tmp_path / "out"))


def test_mathematics_and_cut_out_keys_do_not_look_like_keys(tmp_path):
    text = "the bearer of 12 sk-8 risks; basic multiplication/division; Bearer [key]; ask-and-tell"
    assert export(leaked(tmp_path, text), RUN, str(tmp_path / "out"))["problems"] == 2
