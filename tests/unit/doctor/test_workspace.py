"""What the doctor finds in workspaces with every kind of damage, and what it repairs."""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager

import duckdb
import pytest
import torch

from flows.doctor import machine, workspace
from flows.doctor.findings import surviving
from flows.doctor.repair import repair
from flows.servers.login import login
from sdcore.errors import DataError, SdcoreError, StoreBusyError
from sdcore.models import sealed, weight_files
from sdcore.store.check import check
from sdcore.store.database import Store
from sdcore.store.export import export
from sdcore.store.schema import TABLES
from sdcore.training import checkpoints
from tests.helpers.example import EXPERIMENT, fill, policy

RUN = EXPERIMENT.experiment_id
CHECKPOINT = f"checkpoints/{RUN}/reference/seed-0/round-0004"


def findings(root):
    looks = workspace.looks(root).items()
    return [finding for name, look in looks for finding in surviving(name, look)]


def finding(root, name):
    look = {"checkpoint": "checkpoints", "privacy": "workspace"}.get(name, name)
    (only,) = [each for each in workspace.looks(root)[look]() if each.name == name]
    return only


def tree(root):
    return {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}


def lines(root, *exports):
    return list(repair(root, [str(export) for export in exports]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workspace with the tables of a small run, a checkpoint and both servers' databases."""
    root = tmp_path_factory.mktemp("made") / "a workspace 100%"
    (root / "prefect").mkdir(parents=True)
    (root / "files").mkdir()
    (root / "files" / "small.json").write_text(json.dumps({"run": RUN, "file": {}}))
    weights = {"weight": torch.arange(3.0)}
    folder = root / CHECKPOINT
    with sealed.replacing(folder) as fresh:
        weight_files.save_tensors(weights, fresh / "model.safetensors")
        (fresh / checkpoints.STATE).parent.mkdir()
        weight_files.save_tensors(weights, fresh / checkpoints.STATE)
        (fresh / checkpoints.ABOUT).write_text("{}")
    row = policy("reference", 0, 4) | {
        "path": CHECKPOINT, "sha256": weight_files.digest(weights),
    }  # fmt: skip
    with Store(root / "sdcore.duckdb") as store:
        fill(store)
        store.replace(policies=TABLES["policies"].frame([row]))
    for name in workspace.SERVERS.values():
        with closing(sqlite3.connect(root / name)) as connection, connection:
            connection.execute("CREATE TABLE runs (text)")
            connection.executemany("INSERT INTO runs VALUES (?)", [("x" * 500,)] * 200)
        with closing(sqlite3.connect(root / name)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        (root / name).chmod(0o600)
    return root


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / whole.name)


def test_a_whole_workspace_has_no_findings_and_is_not_touched(root):
    before = tree(root)
    assert {each.state for each in findings(root)} == {"ok"}
    assert finding(root, "checkpoints").found == "1 whole"
    assert "experiments: 1, problems: 4" in finding(root, "tables").found
    assert lines(root) == []
    assert tree(root) == before


def truncated(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def garbage(path):
    path.write_bytes(b"no database " * 1000)


def empty(path):
    path.write_bytes(b"")


def overwritten(path):
    """Bytes in the middle, so that the file opens and one block is wrong."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"x" * 5000)


def folder_instead(path):
    path.unlink()
    path.mkdir()


def gone(path):
    path.unlink()


def made_again(path):
    """As by a run that is started after the file was lost."""
    path.unlink()
    with Store(path) as store:
        store.rows("rollouts")


@pytest.mark.parametrize(
    "damage", [truncated, garbage, empty, overwritten, folder_instead, gone, made_again]
)
def test_damaged_tables_are_found(root, damage):
    damage(root / "sdcore.duckdb")
    before = tree(root)
    (tables,) = workspace.tables(root)
    assert tables.state == "fail" and "--repair --export" in tables.fix
    assert lines(root) == []  # nothing is known that could take their place
    assert tree(root) == before


@pytest.fixture(scope="module")
def exports(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    with Store(whole / "sdcore.duckdb") as store:
        return folder, export(store, RUN, str(folder))


@pytest.mark.parametrize("damage", [overwritten, gone, made_again])
def test_damaged_tables_are_rebuilt_from_an_export(root, exports, damage):
    path, (folder, written) = root / "sdcore.duckdb", exports
    damage(path)
    path.with_name("sdcore.duckdb.wal").write_text("of the old file")
    damaged = path.is_file() and path.read_bytes()
    assert "rebuilt" in lines(root, folder)[-1]
    assert {each.name: each.rows for each in check(path) if each.rows} == written
    kept = path.with_name("sdcore.duckdb.damaged")
    assert (kept.is_file() and kept.read_bytes()) == damaged
    assert path.with_name("sdcore.duckdb.wal.damaged").read_text() == "of the old file"
    assert lines(root, folder) == [f"{path} is whole: nothing to rebuild"]


def test_a_table_without_a_column_or_without_rows_to_read_is_named(root):
    with duckdb.connect(root / "sdcore.duckdb") as connection:
        connection.execute("DROP VIEW IF EXISTS round_health")
        connection.execute("ALTER TABLE updates DROP COLUMN entropy")
        connection.execute("DROP TABLE scores CASCADE")
    tables = finding(root, "tables")
    assert tables.state == "fail"
    assert "updates has other columns than this version: entropy" in tables.found
    assert "scores is missing" in tables.found


def test_a_missing_table_may_be_one_that_is_newer_than_the_workspace(root):
    with duckdb.connect(root / "sdcore.duckdb") as connection:
        connection.execute("DROP TABLE difficulties CASCADE")
    tables = finding(root, "tables")
    assert (tables.state, tables.found) == ("warn", "missing: difficulties")
    assert "the next run makes them empty" in tables.fix


def test_an_export_that_is_none_changes_nothing(root, tmp_path):
    garbage(root / "sdcore.duckdb")
    before = tree(root)
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match="nothing was exported"):
            lines(root, wrong)
    kept = {path: content for path, content in tree(root).items() if path in before}
    assert kept == before


def test_tables_that_a_run_has_open_are_not_called_damaged(root):
    with duckdb_in_another_process(root / "sdcore.duckdb"):
        with pytest.raises(StoreBusyError, match="open in another process"):
            check(root / "sdcore.duckdb", patience=0.3)
        (tables,) = workspace.tables(root, patience=0.3)
    assert tables.state == "warn" and "not checked" in tables.found and tables.fix


@contextmanager
def duckdb_in_another_process(path):
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "1\n"
        yield
    finally:
        process.communicate("\n")


@pytest.mark.parametrize(
    ("name", "damage"), [("mlflow", truncated), ("prefect", garbage), ("mlflow", overwritten)]
)
def test_a_damaged_database_of_a_server_goes_aside(root, name, damage):
    path = root / workspace.SERVERS[name]
    damage(path)
    content = path.read_bytes()
    assert finding(root, name).state == "fail"
    assert path.read_bytes() == content
    (line,) = lines(root)
    assert "moved to" in line and not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content
    assert finding(root, name).found == "no database yet"
    garbage(path)
    assert lines(root)  # the first one stays
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content
    assert path.with_name(f"{path.name}.damaged-2").exists()


def test_a_damaged_database_in_use_stays_where_it_is(root):
    path = root / "mlflow.db"
    garbage(path)
    with path.open(), pytest.raises(SdcoreError, match="in use"):
        lines(root)
    assert path.exists()


def test_a_missing_checkpoint_is_retrained_by_the_next_run(root):
    shutil.rmtree(root / CHECKPOINT)
    missing = finding(root, "checkpoint")
    assert missing.state == "fail" and missing.found == f"{CHECKPOINT}: is missing"
    assert missing.fix == f"`sdcore resume {RUN}` retrains it"
    assert lines(root) == []


@pytest.mark.parametrize("name", ["model.safetensors", checkpoints.STATE, sealed.CHECKSUMS])
@pytest.mark.parametrize("damage", [truncated, empty, gone])
def test_a_damaged_checkpoint_goes_aside_so_that_it_is_retrained(root, damage, name):
    folder = root / CHECKPOINT
    damage(folder / name)
    before = tree(folder)
    assert finding(root, "checkpoint").state == "fail"
    assert tree(folder) == before
    assert "moved to" in lines(root)[0]
    assert not folder.exists() and list(folder.parent.glob("round-*")) == []
    moved = folder.with_name("damaged-round-0004")
    assert {path.name for path in tree(moved)} == {path.name for path in before}
    assert finding(root, "checkpoint").found.endswith("is missing")


def test_weights_of_another_policy_are_not_those_of_the_row(root):
    folder = root / CHECKPOINT
    with sealed.replacing(folder) as fresh:  # whole, with digests of its own
        weight_files.save_tensors({"weight": torch.zeros(3)}, fresh / "model.safetensors")
    assert "the folder holds other weights" in finding(root, "checkpoint").found


def test_notes_of_services_and_files_that_are_damaged(root):
    (root / "services.json").write_text("{")
    (root / "files" / "small.json").write_text("[]")
    assert finding(root, "notes").fix.startswith("rm ")
    (ports,) = surviving("ports", lambda: machine.ports(root, {}))
    assert ports.state == "fail" and ports.fix == "`sdcore down`, then `sdcore up`"


@pytest.mark.parametrize("text", ["{}", '{"run": 3, "file": {}}', '{"run": "small", "file": 4}'])
def test_a_note_of_another_form_is_found_and_its_fix_works(root, text):
    (root / "files" / "small.json").write_text(text)
    (root / "files" / "b.json").mkdir()
    found = list(workspace.notes(root))
    assert [each.state for each in found] == ["fail", "fail"]
    for each in found:
        subprocess.run(shlex.split(each.fix.partition(":")[0]), check=True)
    assert list(workspace.notes(root)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "file") for name in workspace.FILES),
        *((name, "folder") for name in workspace.FOLDERS),
    ],
)
def test_a_folder_for_a_file_a_file_for_a_folder_and_a_dead_link_are_named(root, name, expected):
    path = root / name
    if os.path.lexists(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if expected == "file" else path.write_text("")
    assert [each.found for each in workspace.place(root)][1:] == [f"{path} is not a {expected}"]
    path.rmdir() if expected == "file" else path.unlink()
    path.symlink_to(root / "nowhere")
    assert f"{path} is not a {expected}" in [each.found for each in workspace.place(root)]


def test_a_key_that_no_server_would_take_is_found(root):
    login(root)
    assert finding(root, "login").state == "ok"
    (root / "login.key").write_text("")
    assert [each.state for each in findings(root) if each.name == "login"] == ["fail"]


def test_what_cannot_be_read_is_not_called_lost_or_in_use(root, monkeypatch):
    """As root, who may read everything, by way of what DuckDB and SQLite would say."""
    monkeypatch.setattr(os, "access", lambda path, mode: path.suffix not in (".db", ".duckdb"))
    (root / "sdcore.duckdb").write_text("")
    (root / "mlflow.db-wal").mkdir()
    fixes = {each.name: each.fix for each in findings(root) if each.state != "ok"}
    assert "chmod" in fixes["workspace"]
    assert "see workspace" in fixes["tables"] and "see workspace" in fixes["mlflow"]


def test_services_that_died_are_reported(root):
    (root / "services.json").write_text('{"prefect": 1, "mlflow": 2}')
    assert "gone: prefect, mlflow, deployments" in finding(root, "services").found


def test_files_that_others_may_read_are_named(root):
    (root / "mlflow.db").chmod(0o644)
    privacy = finding(root, "privacy")
    assert privacy.state == "warn" and "mlflow.db" in privacy.found
    subprocess.run(shlex.split(privacy.fix), check=True)
    assert [each.name for each in workspace.place(root)] == ["workspace"]


def test_a_file_where_the_workspace_should_be(tmp_path):
    path = tmp_path / "runs"
    path.write_text("")
    place = finding(path, "workspace")
    assert place.state == "fail" and "not a folder" in place.found
    assert all(each.fix for each in findings(path) if each.state != "ok")


def test_a_path_that_duckdb_cannot_write_to(root, tmp_path):
    moved = root.rename(tmp_path / "what?")
    found = {each.name: each.found for each in findings(moved) if each.state != "ok"}
    assert "a path with a question mark" in found["workspace"] and "tables" not in found


def test_every_problem_has_a_fix(root):
    garbage(root / "sdcore.duckdb")
    garbage(root / "mlflow.db")
    (root / "services.json").write_text("{}")
    problems = [each for each in findings(root) if each.state != "ok"]
    assert len(problems) >= 3 and all(each.fix for each in problems)
