import random

import duckdb
import polars as pl
import pytest

from sdcore.errors import DataError, SdcoreError
from sdcore.store import parts
from sdcore.store.database import Store
from sdcore.store.parts import Part, merge, open_folder, packed, unpacked
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, fill

OWNER = {"experiment_id": EXPERIMENT.experiment_id, "condition": "reference", "seed": 1}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sdcore.duckdb")


@pytest.fixture(params=["folder", "memory"])
def folder(request, tmp_path):
    made = open_folder(str(tmp_path / "root") if request.param == "folder" else "memory://root")
    made.make()
    yield made
    made.remove()


def rows(store: Store) -> dict[str, pl.DataFrame]:
    return {name: store.rows(name).sort(table.key) for name, table in TABLES.items()}


def of_run(store: Store) -> dict[str, pl.DataFrame]:
    """The rows of one condition and seed, by table."""
    names = [name for name, table in TABLES.items() if OWNER.keys() <= table.dtypes.keys()]
    frames = {name: store.rows(name, **OWNER) for name in names}
    return {name: frame for name, frame in frames.items() if len(frame)}


def test_every_table_comes_back_as_it_was(filled):
    stored = {name: frame for name, frame in rows(filled).items() if len(frame)}
    assert len(stored) > 10
    part = unpacked(packed(Part(stored | {"stops": TABLES["stops"].frame([])})), "x")
    assert part.frames.keys() == stored.keys() and not part.replaces
    for name, frame in stored.items():
        assert part.frames[name].equals(frame), name


def test_duckdb_reads_a_part(filled, tmp_path):
    frames = of_run(filled)
    path = tmp_path / "part.parquet"
    path.write_bytes(packed(Part(frames)))
    sql = f"SELECT unnest(rollouts, recursive := true) FROM '{path}'"
    found = duckdb.sql(sql).pl().cast(TABLES["rollouts"].dtypes)
    assert found.equals(frames["rollouts"])


def test_parts_arrive_late_twice_and_in_any_order(filled, store, folder):
    frames = of_run(filled)
    assert {"rollouts", "policies", "scores"} <= frames.keys()
    halves = [
        Part({name: half})
        for name in ("policies", "rollouts", "scores")
        for half in frames[name].iter_slices(-(-len(frames[name]) // 2))
    ]
    written = [parts.write(folder, part, number) for number, part in enumerate(halves, 1)]
    assert parts.names(folder) == written == sorted(written)
    assert parts.write(folder, halves[0], 1) == written[0] and parts.names(folder) == written
    arriving = [*written, *written]
    random.Random(0).shuffle(arriving)
    for name in arriving:
        merge(store, parts.read(folder, name), OWNER)
    for name in ("policies", "rollouts", "scores"):
        assert rows(store)[name].equals(frames[name].sort(TABLES[name].key)), name


def test_what_replaces_a_row_stands_whatever_comes_first(filled, tmp_path):
    first = of_run(filled)["policies"].head(1).with_columns(path=pl.lit(None, pl.String))
    second = first.with_columns(path=pl.lit("checkpoints/x"))
    sent = [Part({"policies": first}), Part({"policies": second}, replaces=True)]
    orders = [(1,), (0, 1), (1, 0), (1, 1), (0, 1, 0, 1)]
    for number, order in enumerate(orders):
        store = Store(tmp_path / str(number) / "sdcore.duckdb")
        for index in order:
            merge(store, sent[index], OWNER)
        assert store.rows("policies").equals(second)
        superseded = store.query(f"SELECT * FROM {store.with_superseded('policies')}")
        assert len(superseded) <= 2  # what stands is not replaced by itself


def test_half_a_part_is_not_read(filled, folder):
    part = Part({"scores": of_run(filled)["scores"]})
    name = parts.write(folder, part, 1)
    path = f"{folder.path}/{name}"
    data = folder.files.cat_file(path)
    for damaged in (data[:-1], data[: len(data) // 2], b"", data[:-1] + b"\0"):
        folder.files.pipe_file(path, damaged)
        assert parts.read(folder, name) is None
    folder.files.pipe_file(path, data)
    assert parts.read(folder, name).frames["scores"].equals(part.frames["scores"])
    assert parts.read(folder, f"000002-{name[7:]}") is None  # not there
    folder.files.pipe_file(f"{folder.path}/.{name}", data[:9])  # a writer was killed
    assert parts.names(folder) == [name]


@pytest.mark.parametrize("column", OWNER)
def test_rows_of_another_run_are_refused_whole(filled, store, column):
    frames = of_run(filled)
    changed = pl.lit(7, pl.Int64) if column == "seed" else pl.lit("another")
    foreign = frames["scores"].with_columns(changed.alias(column))
    with pytest.raises(DataError, match=rf"another run[\s\S]*scores\.{column}"):
        merge(store, Part({"policies": frames["policies"], "scores": foreign}), OWNER)
    assert not len(store.rows("policies"))


def test_a_part_of_another_version_is_refused(filled):
    frames = of_run(filled)
    data = packed(Part(frames)).replace(b"rollouts", b"rollings")
    with pytest.raises(DataError, match=r"unknown tables[\s\S]*rollings"):
        unpacked(data, "x")


def test_an_address_that_nobody_serves_is_said():
    with pytest.raises(SdcoreError, match="cannot be reached"):
        open_folder("nonsense://bucket/prefix")
