"""Whether every kind of damage to a table is noticed, and read access is waited for."""

import threading

import duckdb
import pytest

from sdcore.errors import StoreBusyError, StoreError
from sdcore.store.check import TableCheck, check
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.unit.store.test_database import WRITER, another_process, frame, problem


@pytest.fixture
def path(tmp_path):
    """A file with two problems."""
    with Store(tmp_path / "sdcore.duckdb") as store:
        store.append_missing(problems=frame(problem(0), problem(1)))
    return store.path


def change(path, *statements):
    with duckdb.connect(path) as plain:
        for statement in statements:
            plain.execute(statement)


def faults(path):
    return {table.name: table.fault for table in check(path) if table.fault}


def test_a_whole_file(path):
    expected = [TableCheck(name, rows=2 if name == "problems" else 0) for name in TABLES]
    assert check(path) == expected


def test_what_is_in_the_log_counts(path):
    with Store(path) as store:
        store.append_missing(problems=frame(problem(2)))
        assert {table.rows for table in check(path)} == {0, 3}


def test_missing_and_other_tables_are_named(path):
    other = "has other columns than this version: "
    change(
        path,
        "DROP TABLE scores CASCADE", "CREATE SCHEMA spare", "CREATE TABLE spare.scores (x INT)",
        "DROP TABLE stops CASCADE", "CREATE TABLE stops (seed INT, colour INT)",
        "DROP TABLE difficulties CASCADE",
        "ALTER TABLE problems DROP COLUMN source", "ALTER TABLE problems ADD COLUMN origin TEXT",
    )  # fmt: skip
    columns = ", ".join(
        f"{column.name} {column.sql_type}" for column in reversed(TABLES["difficulties"].columns)
    )
    change(path, f"CREATE TABLE difficulties ({columns})")
    gone = sorted({"colour"} ^ set(TABLES["stops"].dtypes) - {"seed"})
    assert faults(path) == {
        "scores": "is missing",
        "stops": other + ", ".join(gone),
        "difficulties": other + "their order",
        "problems": other + "origin, source",
    }


def test_a_block_that_cannot_be_read_is_one_tables_fault(path):
    rows = [problem(n, question=f"{n} * 987654321 is how much, exactly?") for n in range(3000)]
    with Store(path) as store:
        store.append_missing(problems=frame(*(row | {"experiment_id": "big"} for row in rows)))
    content = bytearray(path.read_bytes())
    at = content.index(b"987654321 is how much")
    content[at] ^= 1
    path.write_bytes(content)
    found = faults(path)
    assert list(found) == ["problems"] and found["problems"].startswith("cannot be read: ")
    assert "\n" not in found["problems"]


@pytest.mark.parametrize("content", [b"", b"garbage " * 999])
def test_what_is_no_database_cannot_be_opened(tmp_path, content):
    path = tmp_path / "x.duckdb"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        check(path)
    assert not isinstance(caught.value, StoreBusyError) and caught.value.where == str(path)


def test_a_writer_is_waited_for_but_not_for_ever(path):
    with another_process(WRITER, path) as holder:
        with pytest.raises(StoreBusyError, match="open in another process") as caught:
            check(path, patience=0.2)
        assert str(holder.pid) in str(caught.value.got) and caught.value.where == str(path)
        leaving = threading.Timer(0.2, holder.stdin.close)
        leaving.start()
        assert len(check(path, patience=60)) == len(TABLES)
        leaving.join()
        holder.stdin = None
