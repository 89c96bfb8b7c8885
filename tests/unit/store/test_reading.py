import csv
import json
import os
import signal
import threading
from pathlib import Path

import duckdb
import polars as pl
import pytest

from sdcore.errors import StoreError
from sdcore.store import reading
from sdcore.store.database import Store
from tests.unit.store.test_database import READER, another_process, frame, problem


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb", timeout=0.5)
    store.append_missing(problems=frame(*(problem(number) for number in range(100))))
    return store


def show(store, sql, rows=40, width=80):
    return reading.show(store, sql, rows=rows, width=width)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM problems",
        "FROM problems",
        "WITH p AS (FROM problems) SELECT 1 FROM p;  -- the end; really",
        "/* é; */ SELECT ';' AS \"é\";",
        "VALUES (1)",
        "DESCRIBE problems",
        "SHOW TABLES",
        "SUMMARIZE problems",
        "FROM (PIVOT problems ON split IN ('train') USING count(*))",
        "SELECT count(*) FROM accuracy_by_step",
    ],
)
def test_statements_that_read_are_run(store, sql):
    assert "│" in show(store, sql).text


FORBIDDEN = [
    "DROP TABLE problems",
    "DELETE FROM problems",
    "SELECT 1; DROP TABLE problems",
    "DETACH workspace; ATTACH '{path}' AS workspace; DROP TABLE workspace.problems",
    "USE memory; SELECT 1",
    "ATTACH '{path}' AS other",
    "COPY problems TO '{out}'",
    "COPY (SELECT 1) TO '{out}' (FORMAT csv)",
    "COPY (PIVOT problems ON split) TO '{out}'",
    "EXPORT DATABASE '{out}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
    "SET threads = 1",
    "RESET threads",
    "PRAGMA database_list",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
    "BEGIN",
    "CREATE SECRET s (TYPE http)",
    "",
    " ; ",
    "-- nothing",
]


@pytest.mark.parametrize("allow_files", [False, True])
@pytest.mark.parametrize("sql", FORBIDDEN)
def test_statements_that_do_more_than_read_are_refused(store, tmp_path, sql, allow_files):
    out = tmp_path / "out"
    with pytest.raises(StoreError, match=r"more than read|not one statement"):
        reading.show(store, sql.format(path=store.path, out=out), rows=9, width=80,
                     allow_files=allow_files)  # fmt: skip
    assert not out.exists() and len(store.rows("problems")) == 100


READS = [
    "FROM read_text('{file}')", "FROM read_csv('{file}')", "FROM '{file}'",
    "FROM read_blob('{file}')", "FROM glob('{folder}/*')", "FROM sniff_csv('{file}')",
    "FROM parquet_metadata('{file}')", "FROM read_json_auto('{file}')",
    "SELECT * FROM query('FROM read_text(''{file}'')')",
    "FROM read_text('http://127.0.0.1:9/x')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{file}'')'))",
]  # fmt: skip


@pytest.mark.parametrize("sql", READS)
def test_nothing_but_the_tables_can_be_read(store, tmp_path, sql):
    file = tmp_path / "secret.csv"
    file.write_text("word\nplover\n")
    with pytest.raises(StoreError, match="query failed") as caught:
        show(store, sql.format(file=file, folder=tmp_path))
    assert "plover" not in str(caught.value)


def test_files_are_read_where_that_is_allowed(store, tmp_path):
    file = tmp_path / "words.csv"
    file.write_text("word\nplover\n")
    shown = reading.show(store, f"FROM '{file}'", rows=9, width=80, allow_files=True)
    assert "plover" in shown.text


def test_no_variable_of_this_process_is_a_table(store):
    secret = pl.DataFrame({"word": ["plover"]})
    with pytest.raises(StoreError, match="secret"):
        show(store, "FROM secret")
    assert len(secret) == 1


def test_only_the_rows_that_are_shown_are_computed(store):
    """A row that is computed beyond the first 11 raises; all 10**12 would take hours."""
    sql = "SELECT CASE WHEN range > 5000 THEN error('too far') ELSE range END n FROM range({})"
    shown = show(store, sql.format(10**12), rows=10)
    assert not shown.complete and " 9 │" in shown.text and " 10 │" not in shown.text
    assert show(store, "FROM range(10)", rows=10).complete
    assert not show(store, "FROM range(11)", rows=10).complete
    assert show(store, "SELECT '2 columns (1 shown)' AS text").complete  # the last line counts


def test_columns_that_do_not_fit_are_left_out_and_counted(store):
    columns = ", ".join(f"'some text of row ' || range AS column_{i}" for i in range(19))
    shown = show(store, f"SELECT {columns} FROM range(2)", width=100)
    lines = shown.text.splitlines()
    assert max(map(len, lines)) <= 100 and not shown.complete
    assert "column_0" in lines[1] and "column_18" in lines[1] and "column_9" not in lines[1]
    assert "some text of row 1" in shown.text  # what is shown is shown in full
    assert "19 columns (4 shown)" in lines[-1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("1::UNION(a INT, b VARCHAR)", "1"), ("INTERVAL 3 DAY", "3 days"), ("'101'::BIT", "101"),
     ("[1, 2]", "[1, 2]"), ("NULL", "NULL"), ("'a [bold]b[/]'", "a [bold]b[/]")],
)  # fmt: skip
def test_values_of_any_type_are_shown(store, value, shown):
    found = show(store, f"SELECT {value} AS x")
    assert shown in found.text and found.complete


def test_a_type_that_polars_lacks_is_named(store):
    with pytest.raises(StoreError, match="no Polars type") as caught:
        reading.read(store, "SELECT INTERVAL 3 DAY AS wait, 1 AS n")
    assert caught.value.got == "wait INTERVAL, n INTEGER" and "VARCHAR" in caught.value.fix
    assert caught.value.where.startswith("SELECT INTERVAL")
    with pytest.raises(StoreError, match="two columns have one name"):
        reading.read(store, "SELECT 1 AS n, 2 AS n")
    assert reading.read(store, "SELECT $n AS n", {"n": 3})["n"].to_list() == [3]


ODD = "SELECT range AS n, [range, 1] AS l, 'a,\"' || chr(27) AS t, 'nan'::DOUBLE AS f FROM range(2)"


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_whole_result_goes_into_a_file(store, tmp_path, form):
    target = tmp_path / f"it's.{form}"
    target.write_text("old")
    assert reading.write(store, ODD, target, form) == 2
    if form == "parquet":
        rows = pl.read_parquet(target).rows()
        assert [row[:3] for row in rows] == [(0, [0, 1], 'a,"\x1b'), (1, [1, 1], 'a,"\x1b')]
    elif form == "json":
        first = {"n": 0, "l": [0, 1], "t": 'a,"\x1b', "f": None}
        assert json.loads(target.read_text(), parse_constant=pytest.fail)[0] == first
    else:
        assert pl.read_csv(target)["l"].to_list() == ["[0,1]", "[1,1]"]
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_json_has_no_nan_however_deep(store, tmp_path, form):
    nan = "'nan'::DOUBLE"
    sql = f"""SELECT [[{nan}, 1]] AS a, {{'x': [{{'y z': 'inf'::FLOAT}}], 'i': 2}} AS b,
        map{{'k': [{nan}]}} AS c, NULL::STRUCT(x DOUBLE) AS d, {nan} AS e"""
    path = tmp_path / f"x.{form}"
    reading.write(store, sql, path, form)
    if form == "json":
        (row,) = json.loads(path.read_text())
    else:
        (cells,) = csv.DictReader(path.read_text().splitlines())
        assert (cells.pop("d"), cells.pop("e")) == ("", "nan")  # CSV has them
        row = {name: json.loads(cell) for name, cell in cells.items()} | {"d": None, "e": None}
    assert row == {
        "a": [[None, 1.0]], "b": {"x": [{"y z": None}], "i": 2}, "c": {"k": [None]},
        "d": None, "e": None,
    }  # fmt: skip


def test_ctrl_c_ends_a_statement_that_never_does(store):
    endless = "WITH RECURSIVE r AS (SELECT 1 n UNION ALL SELECT n + 1 FROM r)"
    ctrl_c = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        reading.read(store, f"{endless} SELECT count(*) FROM r")


def test_a_result_that_fails_leaves_the_old_file(store, tmp_path):
    target = tmp_path / "out.csv"
    target.write_text("old")
    with pytest.raises(StoreError, match="boom"):
        reading.write(store, "SELECT error('boom')", target, "csv")
    with pytest.raises(StoreError, match="two columns have one name") as caught:
        reading.write(store, "SELECT 1 AS b, 1 AS a, 2 AS c, 2 AS b, 3 AS a", target, "csv")
    assert caught.value.got == "a, b"
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_columns_of_any_name_are_written(store, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    sql = """SELECT [1] AS "a ""b"" c", 'inf'::FLOAT AS "select", 1.5::DOUBLE AS "*" """
    assert reading.write(store, sql, Path("out"), form) == 1
    if form == "parquet":
        columns = pl.read_parquet("out").columns
    elif form == "csv":
        columns = next(csv.reader(Path("out").read_text().splitlines()))
    else:
        (row,) = json.loads(Path("out").read_text(), parse_constant=pytest.fail)
        assert list(row.values()) == [[1], None, 1.5]
        columns = list(row)
    assert columns == ['a "b" c', "select", "*"]


def test_files_are_written_from_where_reading_them_is_allowed(store, tmp_path):
    (tmp_path / "words.csv").write_text("word\nplover\nxyzzy\n")
    sql, target = f"FROM '{tmp_path}/words.csv'", tmp_path / "out.json"
    with pytest.raises(StoreError, match="query failed"):
        reading.write(store, sql, target, "json")
    assert reading.write(store, sql, target, "json", allow_files=True) == 2
    assert json.loads(target.read_text()) == [{"word": "plover"}, {"word": "xyzzy"}]


def test_a_target_that_cannot_be_a_file_is_an_error(store, tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written") as caught:
        reading.write(store, "SELECT 1", tmp_path / "taken", "csv")
    assert caught.value.where == str(tmp_path / "taken")
    assert isinstance(caught.value.got, OSError)
    with pytest.raises(StoreError, match="not UTF-8") as caught:
        reading.write(store, "SELECT 1", tmp_path / "\udcff.csv", "csv")
    assert caught.value.got == ascii(str(tmp_path / "\udcff.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_pivot_is_told_how_it_is_one_statement(store):
    with pytest.raises(StoreError, match="more than read") as caught:
        show(store, "PIVOT problems ON split")
    assert caught.value.got == "MULTI" and "IN (values)" in caught.value.fix
    with pytest.raises(StoreError, match="more than read") as caught:
        show(store, "DROP TABLE problems")
    assert (caught.value.got, caught.value.fix) == ("DROP", "")
    with pytest.raises(StoreError, match="not one statement") as caught:
        show(store, "SELECT 1; SELECT 2")
    assert caught.value.got == "2 of them"


def test_a_folder_that_is_not_there_is_an_error(store, tmp_path):
    with pytest.raises(StoreError, match="none"):
        reading.write(store, "SELECT 1", tmp_path / "none" / "out.csv", "csv")


@pytest.mark.parametrize(
    "sql",
    ["SELECT \udcff", "SELECT " + "(" * 5000 + "1" + ")" * 5000, "SELECT $name", "SELECT",
     "SELECT error('x')", "FROM \x00"],
)  # fmt: skip
def test_statements_that_fail_say_why(store, sql):
    with pytest.raises(StoreError) as caught:
        show(store, sql)
    assert caught.value.got and "expected" not in str(caught.value).replace(sql, "")


def test_a_reader_of_the_file_itself_is_no_obstacle(store):
    with another_process(READER, store.path):
        assert "100" in show(store, "SELECT count(*) FROM problems").text


def test_the_copy_is_gone_afterwards(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    show(store, "SELECT 1")
    with pytest.raises(StoreError):
        show(store, "SELECT nonesuch")
    assert list(tmp_path.iterdir()) == []


def test_the_tables_stay_as_they_are(store):
    with duckdb.connect(store.path, read_only=True) as plain:
        assert plain.sql("SELECT count(*) FROM problems").fetchall() == [(100,)]
