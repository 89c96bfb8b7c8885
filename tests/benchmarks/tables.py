"""Rows of `token_signals` appended a second, and the time of queries and views over all of them.

Each append is a million made-up rows, with the rollouts and critiques they belong to stored before.
Usage: tables.py [millions of rows]
"""

import statistics
import sys
import tempfile
from pathlib import Path

import _rows
from _measure import report, seconds

from sdcore.store.database import Store
from sdcore.store.sql_views import VIEWS

RATE, LIMIT, REPEATS = 500_000, 2.0, 3  # rows a second; seconds
QUERIES = {
    "advantage by region": "SELECT condition, round, region, avg(advantage), count(*) "
    "FROM token_signals GROUP BY ALL",
    "entropy by position": "SELECT position, avg(entropy), avg(kl) FROM token_signals GROUP BY ALL",
    "objections of wrong rollouts": "SELECT s.context, count(*), avg(s.advantage) "
    "FROM token_signals s JOIN rollouts r USING (rollout_id) "
    "WHERE NOT r.correct AND s.region = 'at' GROUP BY ALL",
    "tokens of a rollout": "SELECT * FROM token_signals WHERE rollout_id = (FROM rollouts SELECT "
    "max(rollout_id))",
}


def main(millions: int = 50) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder, "sdcore.duckdb"))
        store.append_missing(problems=_rows.problems())
        rates = [append(store, batch) for batch in range(millions)]
        size = store.path.stat().st_size
        asked = QUERIES | {name: f"SELECT * FROM {name}" for name in VIEWS}
        times = {
            name: [seconds(lambda sql=sql: store.query(sql)) for _ in range(REPEATS)]
            for name, sql in asked.items()
        }
    rate, slowest = statistics.median(rates), max(map(statistics.median, times.values()))
    report(
        "tables",
        rate,
        f"{RATE:,} token rows appended a second; each query over {millions} million in {LIMIT:g} s",
        rate >= RATE and slowest <= LIMIT,
        file_bytes=size,
        rows_a_second=[round(each) for each in rates],
        query_seconds={name: [round(s, 3) for s in each] for name, each in times.items()},
    )


def append(store: Store, batch: int) -> float:
    """Append a batch; token rows a second."""
    tokens = _rows.token_signals(batch)
    store.append_missing(
        policies=_rows.policies(batch),
        rollouts=_rows.rollouts(batch),
        critiques=_rows.critiques(batch),
        scores=_rows.scores(batch),
    )
    return len(tokens) / seconds(lambda: store.append_missing(token_signals=tokens))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
