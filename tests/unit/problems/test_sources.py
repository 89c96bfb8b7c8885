import json
import os

import datasets
import duckdb
import polars as pl
import pytest

from sdcore.config import ProblemsConfig
from sdcore.errors import ConfigError, DataError, PluginError
from sdcore.problems.sources import origin, read_jsonl, read_records
from sdcore.problems.splits import load_problems

ROWS = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(4)]


def read(**settings):
    config = ProblemsConfig(train=2, validation=1, test=1, **settings)
    return list(read_records(config))


def test_jsonl_rows_are_numbered_by_line_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": "x\xe2\x80\xa8y"}\r\n{"a": "\xff"}\n[1]\n{"a'
    )
    rows = read(source="jsonl", path=path)
    assert rows[:3] == [(1, {"a": 1}), (4, {"a": "x\u2028y"}), (5, {"a": "\ufffd"})]
    assert [number for number, _ in rows[3:]] == [6, 7]
    assert rows[3][1] == "not an object: [1]"
    assert rows[4][1].startswith("not JSON")


def test_numbers_of_a_json_file_keep_their_spelling(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"answer": 0.00001}\n{"answer": 2.50}\n{"answer": 12}\n', encoding="utf-8")
    answers = [row["answer"] for _, row in read(source="jsonl", path=path)]
    assert [str(answer) for answer in answers] == ["0.00001", "2.50", "12"]
    assert answers == [1e-5, 2.5, 12]


def test_csv_cells_stay_text_and_odd_rows_do_not_stop_the_file(tmp_path):
    path = tmp_path / "p.csv"
    long = b"x" * 200_000
    path.write_bytes(
        b'\xef\xbb\xbfquestion,answer\r\n"a, b\nc",0010\r\n\r\nd\ne,1,2\n\xff,3\n'
        b'"f"g,4\nh,5\n' + long + b',6\ni,"7\nj,8\n'
    )
    rows = [row for _, row in read(source="csv", path=path)]
    good = {0: ("a, b\nc", "0010"), 3: ("\ufffd", "3"), 5: ("h", "5")}
    for index, (question, answer) in good.items():
        assert rows[index] == {"question": question, "answer": answer}
    reasons = {1: "1 cells, but", 2: "3 cells, but", 4: "not CSV", 6: "not CSV", 7: "not CSV"}
    assert all(rows[index].startswith(reason) for index, reason in reasons.items())
    assert len(rows) == len(good) + len(reasons)
    assert rows[7].endswith("lines 11 to 12")  # a quote that is never closed


def test_parquet_reads_the_named_columns_only(tmp_path):
    path = tmp_path / "p.parquet"
    pl.DataFrame(ROWS).with_columns(blob=pl.lit("x" * 1000)).write_parquet(path)
    assert read(source="parquet", path=path) == list(enumerate(ROWS, 1))
    named = tmp_path / "p[1].parquet"  # brackets are no pattern
    path.rename(named)
    assert read(source="parquet", path=named, limit=1) == [(1, ROWS[0])]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("1 AS q, 2 AS answer", r"got: the columns q, answer\n  expected: question\n"),
        ("'a' AS question", r"expected: answer\n"),
        ("'a' AS question, 'infinity'::TIMESTAMP AS answer", "got: answer Datetime"),
        ("['a'] AS question, 1 AS answer", "got: question List"),
        ("'a' AS question, 1 AS answer, true AS solution", "got: solution Boolean"),
    ],
)
def test_a_table_without_the_columns_of_problems_is_refused(tmp_path, columns, said):
    path, base = tmp_path / "p.parquet", tmp_path / "p.duckdb"
    with duckdb.connect(base) as connection:
        connection.sql(f"SELECT {columns}").write_parquet(str(path))
    for settings in ({"source": "parquet", "path": path}, {
        "source": "duckdb", "path": base, "query": f"SELECT {columns}"
    }):  # fmt: skip
        with pytest.raises(DataError, match=rf"columns of text or numbers[\s\S]*{said}"):
            read(**settings)


def test_a_limit_ends_a_query_that_never_does(tmp_path):
    duckdb.connect(tmp_path / "p.duckdb").close()
    endless = "WITH RECURSIVE r AS (SELECT 1 n UNION ALL SELECT n + 1 FROM r)"
    query = f"{endless} SELECT n AS question, n AS answer FROM r"
    rows = read(source="duckdb", path=tmp_path / "p.duckdb", query=query, limit=2)
    assert rows == [(1, {"question": 1, "answer": 1}), (2, {"question": 2, "answer": 2})]


def test_a_generator_that_never_ends_is_asked_for_a_surplus(tmp_path, monkeypatch):
    (tmp_path / "forever.py").write_text(
        "from itertools import count\nfrom sdcore.config import source\n\n"
        "@source(endless=True)\ndef sums(config):\n"
        "    return ({'question': f'{n} + {n}?', 'answer': 2 * n} for n in count())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    counts = {"train": 3, "validation": 1, "test": 1}
    endless = ProblemsConfig(source="forever:sums", **counts)
    assert len(list(read_records(endless))) == 4 * 5
    assert len(list(read_records(endless.model_copy(update={"limit": 50})))) == 50
    loaded = load_problems(endless)
    assert len(loaded.problems) == 5


def test_a_query_reads_a_duckdb_file_and_can_do_nothing_else(tmp_path):
    path, other = tmp_path / "p.duckdb", tmp_path / "secret.csv"
    other.write_text("a\n1\n")
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS n FROM range(5)")
    query = "SELECT n || ' + 1?' AS question, (n + 1)::VARCHAR AS answer FROM t LIMIT 4"
    assert read(source="duckdb", path=path, query=query) == list(enumerate(ROWS, 1))
    for bad in ("SELECT * FROM u", "DROP TABLE t", f"SELECT * FROM '{other}'"):
        with pytest.raises(DataError, match="query on a DuckDB file fails"):
            read(source="duckdb", path=path, query=bad)
    with pytest.raises(DataError, match=r"none\.duckdb"):
        read(source="duckdb", path=tmp_path / "none.duckdb", query=query)
    assert not (tmp_path / "none.duckdb").exists()


def test_a_data_set_is_read_from_files_or_from_where_it_was_saved(tmp_path):
    saved, splits, files = tmp_path / "saved", tmp_path / "splits", tmp_path / "files"
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(saved)
    datasets.DatasetDict({"train": whole.select([0]), "eval": whole}).save_to_disk(splits)
    files.mkdir()
    (files / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for settings in ({"name": str(saved)}, {"name": str(splits), "part": "eval"}):
        assert read(source="dataset", **settings) == list(enumerate(ROWS, 1))
    for limit in (None, 2):
        rows = read(source="dataset", name=str(files), limit=limit)
        assert rows == list(enumerate(ROWS, 1))[:limit]


def test_a_data_set_that_is_not_there_or_broken_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*nowhere small train"):
        read(source="dataset", name=str(tmp_path / "nowhere"), subset="small")
    datasets.DatasetDict({"eval": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*train"):
        read(source="dataset", name=str(tmp_path / "d"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"a": 1}\n{"a')
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*broken train"):
        read(source="dataset", name=str(tmp_path / "broken"))


def test_a_generator_draws_the_same_questions_however_many_are_wanted():
    pytest.importorskip("reasoning_gym", reason="the extra sdcore[data] is not installed")
    few = read(source="reasoning_gym", name="chain_sum", options={"min_terms": 3})
    config = ProblemsConfig(
        source="reasoning_gym", name="chain_sum", options={"min_terms": 3}, train=20
    )
    many = list(read_records(config))
    assert [row["question"] for _, row in many[: len(few)]] == [r["question"] for _, r in few]
    assert len(few) == 4 * 4  # four times as many as are wanted
    assert all(row["answer"].lstrip("-").isdigit() for _, row in few)


@pytest.mark.parametrize(
    "settings", [{"name": "no_such"}, {"name": "chain_sum", "options": {"x": 1}}]
)
def test_an_unknown_generator_or_option_is_named(settings):
    pytest.importorskip("reasoning_gym", reason="the extra sdcore[data] is not installed")
    with pytest.raises(ConfigError, match=rf"no such generator[\s\S]*{settings['name']}"):
        read(source="reasoning_gym", **settings)


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path, source, there):
    path = tmp_path / "p.bin"
    if there:
        path.mkdir()
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*p\.bin"):
        read(source=source, path=path)


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
def test_a_limit_takes_the_first_rows(tmp_path, source):
    path = tmp_path / f"p.{source}"
    frame = pl.DataFrame(ROWS)
    {"jsonl": frame.write_ndjson, "csv": frame.write_csv, "parquet": frame.write_parquet}[source](
        path
    )
    assert read(source=source, path=path, limit=2) == list(enumerate(ROWS, 1))[:2]


def test_a_source_has_a_short_name(tmp_path):
    sizes = {"train": 1, "validation": 1, "test": 1}
    file = ProblemsConfig(source="csv", path=tmp_path / "p.csv", **sizes)
    hub = ProblemsConfig(source="dataset", name="openai/gsm8k", subset="main", **sizes)
    drawn = ProblemsConfig(source="reasoning_gym", name="chain_sum", seed=3, **sizes)
    names = ["p.csv", "openai/gsm8k main train", "chain_sum, seed 3"]
    assert [origin(each) for each in (file, hub, drawn)] == names


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("target", ["/dev/zero", None])
def test_what_never_ends_is_no_file_of_problems(tmp_path, source, target):
    path = tmp_path / f"x.{source}"
    os.mkfifo(path) if target is None else path.symlink_to(target)
    with pytest.raises(DataError, match="read from a file"):
        list(read_records(ProblemsConfig(source=source, path=path)))
    with pytest.raises(DataError, match="read from a file"):
        list(read_jsonl(path))


SOURCE = """
from sdcore.config import source

@source()
def rows(config):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("yield {'question': '1'}; raise KeyError('a')", r"got: KeyError: 'a'\n  where: .*line 6"),
        ("raise SystemExit(0)", "got: SystemExit: 0"),
        ("pass", "got: TypeError"),
    ],
)
def test_a_source_of_ones_own_that_fails_is_named_with_the_line(
    body, message, tmp_path, monkeypatch, request
):
    name = f"source_{request.node.callspec.indices['body']}"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(body=body))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=rf"the source '{name}:rows' fails\n  {message}"):
        read(source=f"{name}:rows")


def test_what_is_no_row_of_a_source_of_ones_own_says_so(tmp_path, monkeypatch):
    (tmp_path / "source_odd.py").write_text(SOURCE.format(body="return [5, None, {'a': 1}]"))
    monkeypatch.syspath_prepend(tmp_path)
    rows = [row for _, row in read(source="source_odd:rows")]
    assert rows == ["not a mapping: 5", "not a mapping: None", {"a": 1}]
