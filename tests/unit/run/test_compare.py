"""The paired differences that a run stores."""

from types import SimpleNamespace

import polars as pl
import pytest

from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tasks.compare import store_differences
from tests.helpers.example import EXPERIMENT, fill, score_rows, scored

NAMES = ("comparisons", "seed_differences")


@pytest.fixture
def base(tmp_path):
    """A run of three conditions, compared at two budgets by three metrics: 36 pairs."""
    with fill(Store(tmp_path / "sdcore.duckdb")) as store:
        yield SimpleNamespace(store=store, experiment=EXPERIMENT)


def stored(base):
    return [base.store.rows(name).sort(TABLES[name].key) for name in NAMES]


def superseded(base):
    found = base.store.query("FROM duckdb_tables() WHERE schema_name = 'superseded'")
    return {} if not len(found) else {
        name: len(base.store.query(f"FROM superseded.{name}")) for name in NAMES
    }  # fmt: skip


def test_what_is_the_same_is_left_alone(base):
    before = stored(base)
    assert store_differences(base) == 0 and superseded(base) == {}
    assert all(one.equals(other) for one, other in zip(before, stored(base)))


def test_the_first_are_all_new(base):
    before = stored(base)
    base.store.supersede(dict.fromkeys(NAMES, "true"), {})
    assert store_differences(base) == len(before[0]) == 36
    assert all(one.equals(other) for one, other in zip(before, stored(base)))


def test_scores_that_have_changed_are_compared_again(base):
    # Under `reference` all six test answers of seed 0's chosen round are right now.
    row, problems = score_rows(scored("reference", 0, 2, 6), "test")
    base.store.replace(scores=TABLES["scores"].frame([row]), problem_scores=problems)
    # Three pairs with `reference`, by two metrics (pass@2 was 1 before), at two budgets.
    assert store_differences(base) == 12
    assert superseded(base) == {"comparisons": 36, "seed_differences": 72}
    means = stored(base)[0].filter(
        condition="reference", baseline="base", metric="avg_at_k", budget="epochs"
    )
    assert means["difference"].to_list() == pytest.approx([(4 + 1) / 2 / 6])  # 6 and 3, against 2


def test_a_pair_that_is_compared_no_more_is_gone(base):
    before = stored(base)
    gone = base.store.rows("comparisons").head(1).with_columns(condition=pl.lit("a lost trial"))
    base.store.append_missing(comparisons=gone)
    assert store_differences(base) == 0
    assert all(one.equals(other) for one, other in zip(before, stored(base)))
