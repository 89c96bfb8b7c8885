import polars as pl

from sdcore.analysis.regrading import GRADES, regraded

TRACE = "<step_1>1 + 1 = 2</step_1><answer>{}</answer>"


def rollout(key, text, **grades):
    old = {"answer": "2", "correct": True, "grade_reason": None, "well_formed": True}
    return {"rollout_id": key, "text": text, "reference": "2"} | old | grades


def test_only_what_is_graded_differently_comes_back():
    rows = [
        rollout("same", TRACE.format("2")),
        rollout("was wrong", TRACE.format("2"), correct=False, grade_reason="differs"),
        rollout("was right", TRACE.format("3"), answer="3"),
        rollout("had an answer", "2", answer="2"),
    ]
    found = regraded(pl.DataFrame(rows))
    assert found.columns == ["rollout_id", *GRADES]
    assert found.rows() == [
        ("was wrong", "2", True, None, True),
        ("was right", "3", False, "differs from the reference", True),
        ("had an answer", None, False, "no answer", False),
    ]


def test_none_of_none():
    empty = pl.DataFrame([rollout("x", "y")]).clear()
    assert len(regraded(empty)) == 0
