"""The page of a search, for every way that it can end; numbers by hand."""

from dataclasses import replace
from datetime import datetime

import polars as pl
import pytest

from sdcore.config import Experiment
from sdcore.design.schedule import halving
from sdcore.reports.design import Outcome, as_dict, costs, printable, ranking, render_design
from sdcore.store.schema import TABLES
from tests.helpers.elements import Elements
from tests.helpers.example import EXPERIMENT

DESIGN = EXPERIMENT.design.model_copy(update={"max_tokens": 900, "max_cost": 2.5})
FILE = EXPERIMENT.model_copy(update={"design": DESIGN})


def row(candidate, rung, rank, fate, score, tokens, **columns):
    empty = dict.fromkeys(TABLES["candidates"].dtypes)
    given = {
        "experiment_id": "small-1", "design_id": "small-2", "candidate": candidate, "rung": rung,
        "run_id": "small-design-3", "context": "step_aligned", "learns_from": "all", "rounds": rung,
        "seeds": 2, "score": score, "rank": rank, "sampled_tokens": tokens, "critic_tokens": 10,
        "cost": 0.25, "fate": fate, "reason": "why", "decided_at": datetime(2026, 1, 2),
    }  # fmt: skip
    return empty | given | columns


ROWS = [
    row("a", 0, 1, "kept", 0.9, 100, teacher=0.9, auc=0.8, aim=None),
    row("b", 0, 2, "kept", 0.5, 100),
    row("c<b>", 0, 3, "dropped", 0.1, 100),
    row("d", 0, None, "skipped", None, 0, critic_tokens=0, cost=0.0, reason="needs a <critic>"),
    row("b", 1, 1, "kept", 0.25, 40, low=0.2, high=0.3),
    row("a", 1, 2, "dropped", None, 30, reason="seed 1 stopped"),
    row("a", 2, 1, "baseline", 0.2, 50, low=0.1, high=0.3),
    row("b", 2, 2, "confirmed", 0.3, 60, low=0.2, high=0.4),
]
FOUND = Outcome(
    experiment=FILE,
    design_id="small-2",
    search_id="small-design-3",
    confirmation_id="small-confirm-4",
    baseline="a",
    winner="b",
    word="confirmed",
    reason="+10.0 points (+2.0 to +18.0) against a",
    rungs=halving(2, 2, 1, 4),
    group_sizes=(1,),
    bounds={"preflight": 400, "rung 1": 100, "confirmation": 200},
    critic_bounds={"preflight": 90, "rung 1": 30},
    candidates=TABLES["candidates"].frame(ROWS),
    reused=(("small-1", 3),),
    file='name = "small-winner"\n',
)


def test_who_went_further_is_ahead_and_its_story_is_told():
    lines = ranking(FOUND)
    assert [line.name for line in lines] == ["b", "a", "c<b>"]
    assert [line.sampled for line in lines] == [200, 180, 100]
    assert lines[0].fate == "winner of the search; confirmed"
    assert lines[1].fate == ("dropped after rung 1: seed 1 stopped; baseline")
    assert lines[1].preflight == ("0.90", "0.90", "0.80", "—") and lines[1].rungs[0] is None
    assert (lines[0].rungs[0].value, lines[0].rungs[0].interval) == ("25.0", "20.0–30.0")


def test_costs_are_summed_by_stage():
    assert costs(FOUND).rows() == [
        ("preflight", 400, 300, 90, 30, 0.75), ("rung 1", 100, 70, 30, 20, 0.5),
        ("confirmation", 200, 110, 0, 20, 0.5), ("in all", 700, 480, 120, 70, 1.75),
    ]  # fmt: skip


def test_the_page_is_whole_and_what_comes_from_tables_is_escaped():
    page = render_design(FOUND)
    elements = Elements(page)
    assert not elements.open and not {"script", "link"} & {tag for tag, _ in elements.tags}
    assert "c&lt;b&gt;" in page and "needs a &lt;critic&gt;" in page and "<critic>" not in page
    for text in (
        "b is better than a. +10.0 points", "480 of at most 700", "cost 1.75 of at most 2.5",
        "small-1 (3)", 'href="small-confirm-4.html"', 'href="small-design-3-diagnosis.html"',
        "sdcore run small-2-winner.toml",
    ):  # fmt: skip
        assert text in page


@pytest.mark.parametrize(
    ("seeds", "covers"), [(1, "problems, within this seed only"), (2, "too few"), (3, "and seeds")]
)
def test_the_page_says_what_its_intervals_cover(seeds, covers):
    rows = FOUND.candidates.with_columns(
        seeds=pl.when(pl.col("rung") == 1).then(seeds).otherwise(4).cast(pl.Int64)
    )
    ranking = render_design(replace(FOUND, candidates=rows)).split('id="ranking"')[1]
    rungs, confirmation = ranking.split("on test in the confirmation")
    assert covers in rungs and "they cover problems and seeds" in confirmation


def test_candidates_that_sample_more_per_question_are_named():
    page = render_design(replace(FOUND, group_sizes=(1, 8)))
    assert "1, 8: candidates with more of them have sampled and trained on more" in page
    assert "Rollouts per question" not in render_design(FOUND)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"word": "refuted"}, "b won the search but is worse than a: keep a."),
        ({"word": "not shown"}, "b won the search, but is not shown to be better than a."),
        ({"word": "kept", "winner": "a", "confirmation_id": None}, "Nothing beats a"),
        ({"word": "no winner", "winner": None, "confirmation_id": None, "file": None},
         "The search has no winner."),
    ],
)  # fmt: skip
def test_every_end_has_its_sentence(changed, said):
    found = replace(FOUND, **changed)
    if found.confirmation_id is None:
        found = replace(found, candidates=TABLES["candidates"].frame(ROWS[:6]))
    page = render_design(found)
    assert said in page and ("winner’s file" in page) == (found.file is not None)
    assert not Elements(page).open
    titles = [title for title, _ in printable(found)]
    assert titles == ["Result", "Ranking", "Skipped", "Budget"]
    assert as_dict(found)["word"] == found.word


def test_a_stored_experiment_without_changes_has_no_limits_to_tell():
    plain = replace(FOUND, experiment=Experiment.model_validate(EXPERIMENT.model_dump()))
    page = render_design(plain)
    assert "Budget in tokens" not in page and "cost 1.75<" in page
