from types import SimpleNamespace

from sdcore.design.schedule import Rung
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tasks.design import _without_score


def test_a_stop_in_a_later_rung_changes_nothing_in_an_earlier_one(tmp_path):
    # Rounds count from 0: round 3 is the last of the first rung, round 4 the first of the second.
    store = Store(tmp_path / "sdcore.duckdb")
    store.append_missing(
        stops=TABLES["stops"].frame(
            [
                {"experiment_id": "e", "condition": name, "seed": 0, "round": round_,
                 "good_round": 2, "sign": "format", "reason": "40%"}
                for name, round_ in (("early", 3), ("late", 4))
            ]
        )
    )  # fmt: skip
    base = SimpleNamespace(store=store, experiment=SimpleNamespace(experiment_id="e"))
    first, second = Rung(1, 4, 2, 2), Rung(2, 8, 2, 1)
    assert _without_score(base, first) == {"early": "seed 0 stopped after round 3: 40%"}
    assert set(_without_score(base, second)) == {"early", "late"}
