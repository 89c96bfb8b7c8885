import polars as pl

from sdcore.analysis.regrading import GRADES, regraded

TRACE = "<step_1>1 + 1 = 2</step_1><answer>{}</answer>"


def rollout(key, text, **grades):
    old = {"answer": "2", "reward": 1.0, "correct": True, "well_formed": True}
    old |= {"grade_reason": None, "grade_details": None}
    return {"rollout_id": key, "text": text, "question": "1 + 1?", "reference": "2"} | old | grades


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
        ("was wrong", "2", 1.0, True, None, None, True),
        ("was right", "3", 0.0, False, None, "differs from the reference", True),
        ("had an answer", None, 0.0, False, None, "no answer", False),
    ]


def test_none_of_none():
    empty = pl.DataFrame([rollout("x", "y")]).clear()
    assert len(regraded(empty)) == 0
