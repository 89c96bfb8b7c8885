import base64
from urllib.parse import quote

import fsspec
import polars as pl
import pytest
from datasets import load_dataset

from sdcore.errors import DataError, SdcoreError
from sdcore.keys import Key
from sdcore.store import export as exporting
from sdcore.store.database import Store
from sdcore.store.export import card, export
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, policy, problem, rollout, run_row

RUN = EXPERIMENT.experiment_id


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four problems, two rollouts and a policy of each condition and seed, and another run."""
    runs = [("base", 0), ("grpo", 0), ("grpo", 1), ("reference", 0), ("reference", 1)]
    rollouts = [
        rollout(*run, "test", 2, f"p{n}", 0, correct=n == 0) for run in runs for n in (1, 0)
    ]
    frames = {
        "experiments": [run_row(), run_row() | {"experiment_id": "other"}],
        "problems": [problem(f"p{n}", "test", n) for n in (3, 1, 0, 2)],
        "rollouts": rollouts,
        "policies": [policy(*run, 2) for run in reversed(runs)],
    }
    store = Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb", threads=1)
    store.append_missing(**{name: TABLES[name].frame(rows) for name, rows in frames.items()})
    return store


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
        "reference/seed-0.parquet", "reference/seed-1.parquet",
    ]  # fmt: skip
    assert "data/problems/all.parquet" in found


def test_rows_stand_in_the_order_of_their_key(store, exported):
    folder, _ = exported
    for name, path, rows in (
        ("problems", "all", store.rows("problems")),
        ("rollouts", "grpo/seed-1", store.rows("rollouts", condition="grpo", seed=1)),
    ):
        found = pl.read_parquet(folder / "data" / name / f"{path}.parquet")
        assert found.equals(rows.sort(TABLES[name].key))


def test_what_was_exported_is_read_back(store, exported):
    folder, written = exported
    frames = exporting.exported(f"{folder}/")
    assert {name: len(rows) for name, rows in frames.items()} == written
    for name, rows in frames.items():
        stored = store.rows(name, experiment_id=RUN)
        assert rows.sort(TABLES[name].key).equals(stored.sort(TABLES[name].key)), name


def test_what_is_no_export_is_not_read(store, tmp_path):
    with pytest.raises(DataError, match="nothing was exported") as caught:
        exporting.exported(str(tmp_path))
    assert (caught.value.got, caught.value.where) == ("tables: none", str(tmp_path))
    rows = tmp_path / "data" / "problems" / "all.parquet"
    rows.parent.mkdir(parents=True)
    store.rows("problems").write_parquet(rows)
    with pytest.raises(DataError, match="tables: problems"):
        exporting.exported(str(tmp_path))
    rows.write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot be read") as caught:
        exporting.exported(str(tmp_path))
    assert caught.value.where == str(rows)


def test_an_empty_folder_may_be_the_target_and_a_full_one_may_not(store, tmp_path):
    (tmp_path / "empty").mkdir()
    assert export(store, RUN, str(tmp_path / "empty"))["problems"] == 4
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SdcoreError, match="there already") as caught:
        export(store, RUN, str(tmp_path / "empty"))
    assert caught.value.where == str(tmp_path / "empty") and sorted(tmp_path.rglob("*")) == before


def test_the_card_explains_every_table_of_the_run():
    stops = TABLES["stops"]
    lines = card('a "run"', {"stops": 1234, "experiments": 1}).splitlines()
    assert lines[:14] == [
        "---", 'pretty_name: "a \\"run\\""', "configs:",
        "- config_name: stops", "  data_files:", "  - split: rows", '    path: "data/stops/**"',
        "- config_name: experiments", "  data_files:", "  - split: rows",
        '    path: "data/experiments/**"', "---", "", '# a "run"',
    ]  # fmt: skip
    assert 'datasets.load_dataset(folder, "stops", split="rows")' in lines
    at = lines.index("## stops")
    key = "Key: experiment_id, condition, seed."
    assert lines[at + 2] == f"1,234 rows, each {stops.meaning}. {key}"
    assert lines[at + 4 : at + 6] == ["| column | type | meaning |", "|---|---|---|"]
    assert lines[at + 6] == "| experiment_id | VARCHAR | the experiment run |"
    assert lines[at + 6 + len(stops.columns)] == "" and lines[at + 8 + len(stops.columns)] == ""
    assert lines[at + 7 + len(stops.columns)] == "## experiments"


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
    with files.open("/bucket/run/data/rollouts/grpo/seed-1.parquet") as file:
        found = pl.read_parquet(file)
    assert len(found) == 2 and found.equals(
        store.rows("rollouts", condition="grpo", seed=1).sort("rollout_id")
    )
    assert written == {"experiments": 1, "problems": 4, "rollouts": 10, "policies": 5}


@pytest.mark.parametrize("target", ["nonsense://bucket/x", "memory://taken"])
def test_an_address_that_cannot_be_used_is_refused(store, target):
    fsspec.filesystem("memory").pipe("/taken/file", b"x")
    with pytest.raises(SdcoreError, match=r"cannot be reached|there already"):
        export(store, RUN, target)


@pytest.mark.parametrize("error", [ImportError("Install s3fs"), OSError("refused")])
def test_a_library_that_is_missing_is_named(monkeypatch, error):
    def fails(target, **options):
        raise error

    monkeypatch.setattr(fsspec, "url_to_fs", fails)
    with pytest.raises(SdcoreError, match="cannot be reached") as caught:
        exporting.exported("s3://bucket")
    assert (caught.value.got, caught.value.where) == (error, "s3://bucket")
    assert ("sdcore[s3]" in caught.value.fix) == isinstance(error, ImportError)


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
    assert raised.value.got == "the value of $CRITIC_API_KEY"
    assert raised.value.where == f"problems.question, experiment_id = {RUN}, problem_id = q"
    assert raised.value.fix and not (tmp_path / "out").exists()


def test_what_was_searched_is_what_is_written(tmp_path, monkeypatch):
    """A row that a run stores meanwhile, and that nobody has searched, is not exported."""
    store = Store(tmp_path / "sdcore.duckdb")
    store.append_missing(problems=TABLES["problems"].frame([problem("p", "train", 0)]))
    monkeypatch.setenv("CRITIC_API_KEY", TOKEN)
    opened = exporting._open

    def later(target):
        leak = problem("q", "train", 1, question=TOKEN)
        store.append_missing(problems=TABLES["problems"].frame([leak]))
        return opened(target)

    monkeypatch.setattr(exporting, "_open", later)
    assert export(store, RUN, str(tmp_path / "out")) == {"problems": 1}
    assert len(store.rows("problems")) == 2


def test_the_key_of_another_run_in_the_workspace_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setenv("CRITIC_API_KEY", TOKEN)
    store = Store(tmp_path / "sdcore.duckdb")
    other = problem("q", "train", 1, question=LEAKS["plain"]) | {"experiment_id": "other"}
    store.append_missing(problems=TABLES["problems"].frame([problem("p", "train", 0), other]))
    assert export(store, RUN, str(tmp_path / "out")) == {"problems": 1}


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
