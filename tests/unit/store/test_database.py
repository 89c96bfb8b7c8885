import os
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from errno import ENOSPC
from types import SimpleNamespace

import duckdb
import polars as pl
import pytest

from sdcore.errors import DataError, StoreBusyError, StoreError
from sdcore.store import database
from sdcore.store.check import check
from sdcore.store.database import Store, query_file
from sdcore.store.schema import TABLES, content_key
from sdcore.store.sql_views import VIEWS


def problem(number: int, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "experiment_id": "e",
        "problem_id": f"p{number}",
        "question": "1+1=?",
        "solution": None,
        "reference": "2",
        "split": "train",
        "position": number,
        "source": "test",
    }
    return row | changes


def frame(*rows: dict[str, object]) -> pl.DataFrame:
    return TABLES["problems"].frame(list(rows))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "new" / "sdcore.duckdb", timeout=0.5)


def test_a_second_append_writes_only_what_is_missing(store):
    assert store.append_missing(problems=frame(problem(0), problem(1))) == {"problems": 2}
    assert store.append_missing(problems=frame(problem(1), problem(2))) == {"problems": 1}
    assert sorted(store.rows("problems")["problem_id"]) == ["p0", "p1", "p2"]


def others_see(store) -> list[str]:
    """What anyone else finds in the file."""
    return sorted(Store(store.path).rows("problems")["problem_id"])


def test_rows_come_back_equal_whatever_their_text(store):
    nasty = problem(0, question="'; DROP TABLE problems; -- \x00\u2603 \"", solution=None)
    store.append_missing(problems=frame(nasty))
    assert store.rows("problems", question=nasty["question"]).row(0, named=True) == nasty
    assert len(store.rows("problems", solution=None)) == 1


def test_lists_keep_their_types(store):
    row = {
        "experiment_id": "e", "condition": "c", "seed": 0, "context_id": "x", "rollout_id": "r",
        "context": "none", "text": None, "critique_id": None, "teacher_prompt_ids": [1, 2, 3],
    }  # fmt: skip
    store.append_missing(contexts=TABLES["contexts"].frame([row]))
    assert store.rows("contexts").schema == pl.Schema(TABLES["contexts"].dtypes)


@pytest.mark.parametrize("name", ["a%41b#c", "a 'b'"])
def test_a_folder_of_any_name_holds_the_file_and_its_log(tmp_path, name):
    path = tmp_path / name / "sdcore.duckdb"
    store = Store(path)
    store.append_missing(problems=frame(problem(0)))
    assert path.with_name("sdcore.duckdb.wal").exists()
    assert len(Store(path).rows("problems")) == 1  # by the log
    store.close()
    assert len(Store(path).rows("problems")) == 1
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_a_folder_in_which_duckdb_cannot_write_is_refused(tmp_path):
    store = Store(tmp_path / "a?b" / "sdcore.duckdb")
    with pytest.raises(StoreError, match="question mark"):
        store.append_missing(problems=frame(problem(0)))
    assert not store.path.exists()
    plain = Store(tmp_path / "plain.duckdb")
    plain.append_missing(problems=frame(problem(0)))
    plain.close()
    plain.path.rename(store.path)
    assert others_see(store) == ["p0"]  # reading is no trouble
    (tmp_path / "link").symlink_to(store.path.parent)
    linked = Store(tmp_path / "link" / "sdcore.duckdb")
    with pytest.raises(StoreError, match="question mark") as caught:
        linked.append_missing(problems=frame(problem(1)))
    assert caught.value.got == str(store.path)


def test_one_bad_table_leaves_all_unwritten(store):
    bad = frame(problem(0)).with_columns(reference=pl.lit(None, pl.String))
    with pytest.raises(DataError, match=r"row 0[\s\S]*problems.reference"):
        store.append_missing(problems=bad)
    with pytest.raises(DataError, match="occurs twice"):
        store.append_missing(problems=frame(problem(0), problem(0)))
    with pytest.raises(DataError, match="columns differ"):
        store.append_missing(problems=frame(problem(0)).drop("reference"))
    assert len(store.rows("problems")) == 0


def test_query_is_read_only_and_names_the_tables_on_error(store):
    store.append_missing(problems=frame(problem(0)))
    assert store.query("SELECT count(*) AS n FROM problems WHERE position = ?", [0])["n"][0] == 1
    with pytest.raises(StoreError, match="read-only") as caught:
        store.query("DELETE FROM problems")
    assert (caught.value.where, caught.value.fix) == (str(store.path), "")
    with pytest.raises(StoreError) as caught:
        store.query("SELECT * FROM rollout")
    assert (
        caught.value.fix.startswith("tables: experiments, ") and "round_health" in caught.value.fix
    )
    with pytest.raises(StoreError, match="no such column") as caught:
        store.rows("problems", colour="red")
    assert (caught.value.got, caught.value.where) == ({"colour"}, "problems")
    assert "reference" in caught.value.expected
    assert store.query("").is_empty()


def test_rows_are_chosen_by_values_and_by_lists_of_them(store):
    rows = [problem(0), problem(1), problem(2, split="test"), problem(3, split="test")]
    store.append_missing(problems=frame(*rows))
    found = store.rows("problems", position=[0, 2, 3], split="test")
    assert sorted(found["problem_id"]) == ["p2", "p3"]
    assert store.rows("problems", position=[]).is_empty()


def test_all_that_a_table_ever_had(store):
    store.append_missing(problems=frame(problem(0), problem(1)))
    assert store.with_superseded("problems") == "problems"  # nothing was ever moved away
    store.supersede({"problems": "position = $position"}, {"position": 1})
    store.append_missing(problems=frame(problem(1, reference="3")))
    found = store.query(f"SELECT problem_id, reference FROM {store.with_superseded('problems')}")
    assert sorted(found.rows()) == [("p0", "2"), ("p1", "2"), ("p1", "3")]
    assert store.with_superseded("scores") == "scores"


def test_threads_of_a_query_can_be_bounded_and_accesses_are_timed(tmp_path):
    timed = []

    @contextmanager
    def watch():
        yield
        timed.append("done")

    with Store(tmp_path / "a" / "b" / "sdcore.duckdb", threads=1, timed=watch) as store:
        assert store.query("SELECT current_setting('threads')").item() == 1
        store.rows("problems")
        assert timed == ["done", "done"]
    assert timed == ["done", "done"]  # nothing was written, so there is nothing to fold in


def test_closing_does_not_wait_for_a_reader(store, monkeypatch):
    monkeypatch.setattr(database, "CLOSING", 0.1)
    patient = Store(store.path, timeout=None)
    patient.append_missing(problems=frame(problem(0)))
    with another_process(READER, store.path):
        patient.close()
    assert store.path.with_name("sdcore.duckdb.wal").exists() and others_see(store) == ["p0"]


def test_an_interrupted_append_changes_nothing_and_holds_up_nobody(store, monkeypatch):
    append = database._append

    def interrupted(connection, table, rows):
        append(connection, table, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "_append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.append_missing(problems=frame(problem(0)))
    monkeypatch.undo()
    assert others_see(store) == []
    assert store.append_missing(problems=frame(problem(0))) == {"problems": 1}


@contextmanager
def another_process(code: str, *arguments: object):
    """A Python process that runs some code, says that it has, and waits for the block's end."""
    held = f"import sys, duckdb\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", held, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate()


WRITER = "connection = duckdb.connect(sys.argv[1])"
READER = "connection = duckdb.connect(sys.argv[1], read_only=True)"
LOCKER = "import fcntl; file = open(sys.argv[1] + '.lock', 'a'); fcntl.flock(file, fcntl.LOCK_EX)"


@pytest.mark.parametrize("code", [WRITER, LOCKER])
def test_a_bounded_wait_ends_with_the_name_of_who_holds_the_file(store, code):
    store.append_missing(problems=frame(problem(0)))
    with another_process(code, store.path) as holder:
        with pytest.raises(StoreBusyError, match="close them there") as caught:
            store.rows("problems")
        assert f"(pid {holder.pid})" in str(caught.value.got)
        assert caught.value.expected == "to be free within 0.5 s"
        assert caught.value.where == str(store.path)
    assert len(store.rows("problems")) == 1


@pytest.mark.parametrize("code", [WRITER, READER, LOCKER])
def test_a_run_waits_for_as_long_as_it_takes_and_says_for_whom(store, monkeypatch, code):
    store.append_missing(problems=frame(problem(0)))
    monkeypatch.setattr(database, "NOTICE", 0.1)
    said = []
    with another_process(code, store.path) as holder:

        def say(line):
            said.append(line)
            if "waiting" in line:  # this process would wait for ever
                holder.stdin.close()

        patient = Store(store.path, timeout=None, say=say)
        patient.append_missing(problems=frame(problem(1)))
        holder.stdin = None
    assert len(said) == 2 and f"(pid {holder.pid})" in said[0] and "going on" in said[1]
    assert others_see(store) == ["p0", "p1"]


def waits(store, *holders: str) -> None:
    """Wait in `store` for processes that have the file one after the other."""
    turns = iter(holders)

    def attempt():
        if (holder := next(turns, None)) is not None:
            raise database._HeldError(holder)

    store._patiently(attempt)


def test_every_holder_is_named_once_while_it_has_the_file(store, monkeypatch):
    monkeypatch.setattr(database, "NOTICE", 0.0)
    said = []
    store._say = said.append
    waits(store, "a", "a", "b", "b", "a")
    assert said == [
        *(f"waiting: {name} has the tables open ({store.path})" for name in "aba"),
        "the tables are free again, going on",
    ]
    monkeypatch.undo()
    waits(store, "a", "b")  # for less than a second, which is nobody's business
    assert len(said) == 4


@pytest.mark.parametrize(
    ("holder", "named"),
    [(" in /usr/bin/python3.11 (PID 99999999) by user jo", "python3.11 (pid 99999999)"),
     (". See also https://duckdb.org", "another process"), (" in  (PID 0)", "another process")],
)  # fmt: skip
def test_duckdb_names_the_holder_of_its_lock(store, holder, named):
    def refuse(sql):
        raise duckdb.IOException(f'lock on file "x": Conflicting lock is held{holder}')

    store._duckdb = SimpleNamespace(execute=refuse)
    with pytest.raises(database._HeldError) as caught:
        store._attach_once("ATTACH")
    assert str(caught.value) == named


def test_a_reader_beside_a_reader_does_not_wait(store):
    store.append_missing(problems=frame(problem(0)))
    with another_process(READER, store.path):
        assert len(Store(store.path, timeout=0.5).rows("problems")) == 1


def test_a_copy_holds_up_nobody_and_has_what_is_in_the_log(store, tmp_path):
    store.append_missing(problems=frame(problem(0)))
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = store.copied(folder)
    with another_process(READER, copy):
        store.append_missing(problems=frame(problem(1)))
    assert others_see(Store(copy)) == ["p0"] and others_see(store) == ["p0", "p1"]
    store.close()
    (folder / "sdcore.duckdb.wal").unlink()  # there is no log any more
    assert others_see(Store(Store(store.path).copied(folder))) == ["p0", "p1"]


def test_no_room_for_a_copy_is_said(store, tmp_path, monkeypatch):
    def full(*files):
        raise OSError(ENOSPC, "No space left on device")

    store.append_missing(problems=frame(problem(0)))
    monkeypatch.setattr(database.shutil, "copyfileobj", full)
    (tmp_path / "copies").mkdir()
    with pytest.raises(StoreError, match="cannot be copied") as caught:
        store.copied(tmp_path / "copies")
    assert "No space left" in str(caught.value.got)
    assert caught.value.where == str(tmp_path / "copies" / "sdcore.duckdb")
    monkeypatch.undo()
    assert others_see(store) == ["p0"]


@pytest.mark.parametrize("room", [4096, 20_000, 300_000])
def test_a_full_disk_is_said_and_later_goes_on(tmp_path, room):
    """By a limit of a file's size: while the file, its tables or its rows are written."""
    path, limit = tmp_path / "sdcore.duckdb", resource.RLIMIT_FSIZE
    rows = [problem(n, question=f"{n}" * 2000) for n in range(100)]
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (room, hard))
    try:
        with pytest.raises(StoreError, match="File too large"), Store(path) as store:
            for start in range(0, 100, 10):
                store.append_missing(problems=frame(*rows[start : start + 10]))
    finally:
        resource.setrlimit(limit, (soft, hard))
    with Store(path) as store:
        store.append_missing(problems=frame(*rows))
    assert len(others_see(Store(path))) == 100


def test_a_file_of_another_program_downloads_nothing(tmp_path):
    """DuckDB's extension for SQLite, which it would install by itself."""
    path = tmp_path / "sdcore.duckdb"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE rollouts (text)")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        Store(path).rows("rollouts")
    assert "download" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        check(path)
    assert "download" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage " * 5000])
def test_a_file_that_is_no_database_is_an_error_at_once(tmp_path, content):
    path = tmp_path / "sdcore.duckdb"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        Store(path).rows("problems")
    assert not isinstance(caught.value, StoreBusyError) and time.monotonic() - start < 30
    assert caught.value.expected == "a DuckDB file" and str(path) in caught.value.where
    assert (caught.value.got == "an empty file") == (content == b"")
    assert path.read_bytes() == content


def test_tables_are_their_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        store = Store(tmp_path / "new" / "sdcore.duckdb")
        store.append_missing(problems=frame(problem(0)))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode)
                 for path in [store.path.parent, *store.path.parent.iterdir()]}  # fmt: skip
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == {"new": 0o700, "sdcore.duckdb": 0o600, "sdcore.duckdb.wal": 0o600,
                     "sdcore.duckdb.lock": 0o600}  # fmt: skip


def test_reading_leaves_a_complete_file_as_it_is(store):
    store.append_missing(problems=frame(problem(0)))
    store.close()
    before = store.path.read_bytes(), store.path.stat().st_mtime_ns
    with Store(store.path) as reader:
        assert len(reader.rows("problems")) == 1
    assert (store.path.read_bytes(), store.path.stat().st_mtime_ns) == before


def test_where_nothing_can_be_written_tables_are_still_read(store):
    """As root, who may write anywhere, by way of a lock file that cannot be opened."""
    store.append_missing(problems=frame(problem(0)))
    store.close()
    lock = store.path.with_name("sdcore.duckdb.lock")
    lock.unlink()
    lock.mkdir()
    with Store(store.path) as reader:
        assert len(reader.rows("problems")) == 1
        with pytest.raises(StoreError, match="cannot be written") as caught:
            reader.append_missing(problems=frame(problem(1)))
    assert caught.value.where == str(store.path.parent)
    store.path.unlink()
    with pytest.raises(StoreError, match="cannot be written"):  # there is nothing to read
        Store(store.path).rows("problems")


def test_an_older_file_that_cannot_be_written_is_read_as_it_is(store, monkeypatch):
    store.append_missing(problems=frame(problem(0)))
    store.close()
    with duckdb.connect(store.path) as plain:
        plain.execute("DROP VIEW round_health")
    for forbidden in (store.path, store.path.parent):
        writable = lambda path, mode, no=forbidden: path != no  # noqa: E731
        monkeypatch.setattr(database.os, "access", writable)
        assert others_see(store) == ["p0"]
        with pytest.raises(StoreError, match="round_health"):
            Store(store.path).query("FROM round_health")
        monkeypatch.undo()
    assert len(Store(store.path).query("FROM round_health")) == 0


def test_a_missing_table_is_made_and_the_others_stay(store):
    store.append_missing(problems=frame(problem(0)))
    store.close()
    with duckdb.connect(store.path) as plain:
        plain.execute("DROP TABLE difficulties CASCADE")
    assert others_see(store) == ["p0"] and Store(store.path).rows("difficulties").is_empty()


def test_while_we_write_a_plain_duckdb_says_who_does(store):
    script = "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True)"
    with store._attached(read_only=False):
        reader = subprocess.run([sys.executable, "-c", script, str(store.path)],
                                capture_output=True, text=True)  # fmt: skip
    assert "Conflicting lock is held" in reader.stderr
    assert subprocess.run([sys.executable, "-c", script, str(store.path)]).returncode == 0


def test_plain_duckdb_reads_what_the_log_holds_and_the_views(store):
    store.append_missing(problems=frame(problem(0)))
    assert store.path.with_name(f"{store.path.name}.wal").stat().st_size
    with duckdb.connect(str(store.path), read_only=True) as plain:
        assert plain.sql("SELECT problem_id FROM problems").fetchall() == [("p0",)]
        assert plain.sql("FROM accuracy_by_step").fetchall() == []


def test_once_closed_the_file_alone_is_complete(store):
    script = """if True:
        import sys
        from pathlib import Path
        from sdcore.store.database import Store
        from tests.unit.store.test_database import frame, problem
        with Store(Path(sys.argv[1])) as store:
            store.append_missing(problems=frame(problem(0)))
    """
    subprocess.run([sys.executable, "-c", script, str(store.path)], check=True)
    assert not store.path.with_name(f"{store.path.name}.wal").exists()
    assert len(store.rows("problems")) == 1


def test_a_view_of_another_definition_is_made_again(store):
    store.query("SELECT 1")
    with duckdb.connect(str(store.path)) as plain:
        plain.execute("CREATE OR REPLACE VIEW failing_steps AS SELECT 1 AS old")
    assert Store(store.path).query("FROM failing_steps").columns == list(
        VIEWS["failing_steps"].columns
    )


def test_processes_append_at_once_without_losing_a_row(store):
    script = """if True:
        import sys
        from pathlib import Path
        from sdcore.store.schema import TABLES
        from sdcore.store.database import Store
        from tests.unit.store.test_database import problem
        store = Store(Path(sys.argv[1]))
        for i in range(10):
            own, shared = f"{sys.argv[2]}-{i}", f"shared-{i}"
            rows = [problem(0, problem_id=own), problem(0, problem_id=shared)]
            store.append_missing(problems=TABLES["problems"].frame(rows))
    """
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(store.path), name]) for name in "abcd"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    assert store.rows("problems")["problem_id"].n_unique() == len(store.rows("problems")) == 50


def test_a_file_of_another_version_is_refused(tmp_path):
    store = Store(tmp_path / "old.duckdb")
    store.append_missing(problems=frame(problem(0)))
    store.close()
    with duckdb.connect(store.path) as connection:
        connection.execute("ALTER TABLE problems DROP COLUMN source")
    with pytest.raises(StoreError, match="another version") as caught:
        Store(tmp_path / "old.duckdb").rows("problems")
    assert [*caught.value.got, "source"] == caught.value.expected
    assert caught.value.where == f"{store.path}: problems"


def test_content_key_depends_on_content_only():
    assert content_key("a", 1) == content_key("a", 1)
    assert content_key("a", 1) != content_key("a", "1") != content_key("a1")
    assert content_key({"x": 1, "y": 2}) == content_key({"y": 2, "x": 1})


def test_every_table_has_its_key_among_its_required_columns():
    for table in TABLES.values():
        required = {column.name for column in table.columns if not column.nullable}
        assert set(table.key) <= required, table.name
        assert all(column.meaning for column in table.columns)


def test_a_row_with_an_unknown_column_is_refused():
    with pytest.raises(KeyError, match="colour"):
        frame(problem(0) | {"colour": "red"})


def test_superseded_rows_make_way_and_are_kept(store):
    store.append_missing(problems=frame(problem(0), problem(1)))
    moved = store.supersede({"problems": "position = $position"}, {"position": 1})
    assert moved == {"problems": 1}
    assert store.rows("problems")["problem_id"].to_list() == ["p0"]
    store.append_missing(problems=frame(problem(1, reference="3")))
    assert store.rows("problems", problem_id="p1")["reference"].to_list() == ["3"]
    kept = store.query("SELECT problem_id, reference, superseded_at FROM superseded.problems")
    assert kept.row(0)[:2] == ("p1", "2") and kept["superseded_at"][0] is not None


def test_replaced_rows_are_kept_aside_and_new_ones_just_come(store):
    store.append_missing(problems=frame(problem(0), problem(1)))
    assert store.replace(problems=frame(problem(1, reference="3"), problem(2))) == {"problems": 1}
    found = store.query("SELECT problem_id, reference FROM problems ORDER BY ALL").rows()
    assert found == [("p0", "2"), ("p1", "3"), ("p2", "2")]
    kept = store.query("SELECT problem_id, reference FROM superseded.problems")
    assert kept.rows() == [("p1", "2")]


def test_only_the_row_with_the_whole_key_is_replaced(store):
    store.append_missing(problems=frame(problem(0), problem(0, experiment_id="other")))
    assert store.replace(problems=frame(problem(0, reference="3"))) == {"problems": 1}
    found = store.query("SELECT experiment_id, reference FROM problems ORDER BY ALL").rows()
    assert found == [("e", "3"), ("other", "2")]


def test_superseding_is_all_or_nothing(store):
    store.append_missing(problems=frame(problem(0)))
    with pytest.raises(StoreError, match="cannot be written"):
        store.supersede({"problems": "true", "policies": "no_such_column"}, {})
    assert len(store.rows("problems")) == 1


@pytest.mark.parametrize("target", ["/dev/zero", ".", None])
def test_what_is_not_a_file_is_not_opened(tmp_path, target):
    path = tmp_path / "sdcore.duckdb"
    os.mkfifo(path) if target is None else path.symlink_to(target)
    with pytest.raises(StoreError, match="not a file"):  # DuckDB waits at a pipe for ever
        Store(path).query("SELECT 1")


def test_a_duckdb_file_of_any_origin_is_read_and_nothing_else(tmp_path):
    path, secret = tmp_path / "any.duckdb", tmp_path / "secret.csv"
    secret.write_text("word\nplover\n")
    with duckdb.connect(path) as made:
        made.execute("CREATE TABLE t AS SELECT 7 AS n")
    assert query_file(path, "FROM t").rows() == [(7,)]
    for sql in ("FROM nonesuch", f"FROM '{secret}'", "CREATE TABLE u AS FROM t", "", "-- t"):
        with pytest.raises(DataError, match="query on a DuckDB file fails") as caught:
            query_file(path, sql)
        assert caught.value.where == str(path) and caught.value.got
    with pytest.raises(DataError, match=r"none\.duckdb"):
        query_file(tmp_path / "none.duckdb", "SELECT 1")
    assert not (tmp_path / "none.duckdb").exists()
