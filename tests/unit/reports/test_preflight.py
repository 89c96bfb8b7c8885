import json
from dataclasses import replace

import polars as pl
import pytest

from sdcore.analysis.power import detectable
from sdcore.analysis.preflight import contexts_of, diagnose, teacher_samples
from sdcore.analysis.teacher_ability import OWN_PROMPT
from sdcore.config import PromptsConfig, load_experiment
from sdcore.contexts import NULL
from sdcore.errors import DataError
from sdcore.reports.preflight import as_dict, examples, facts, grids, printable, render_diagnosis
from sdcore.reports.prospects import prospects
from sdcore.store.database import Store
from tests.helpers.elements import standing_alone
from tests.helpers.example import EXPERIMENT, fill, fill_diagnosis
from tests.helpers.paths import EXPERIMENTS, QUICKSTART

PROBLEMS = ("train0", "train1")
SEEN = EXPERIMENT.model_copy(
    update={
        "diagnose": EXPERIMENT.diagnose.model_copy(
            update={"contexts": ("reference", "step_aligned")}
        )
    }
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill_diagnosis(fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb")))


@pytest.fixture(scope="module")
def found(store):
    return diagnose(store, SEEN, PROBLEMS)


@pytest.fixture(scope="module")
def page(store, found):
    return render_diagnosis(store, SEEN, found)


def test_the_default_contexts_are_the_papers_the_controls_and_the_files_own():
    own = load_experiment(
        QUICKSTART, ["contexts.own='{{ reference }}'", "conditions.reference.context=outcome"]
    )
    assert contexts_of(own) == (
        "none", "reference", "step_aligned", "full_quote", "omission", "shuffled",
        "other_reference", "wrong_hint", "own", "outcome",
    )  # fmt: skip


def test_without_a_critic_the_contexts_that_need_one_are_left_out():
    file = EXPERIMENTS / "gsm8k.toml"
    names = contexts_of(load_experiment(file, ["problems.path=some.jsonl"]))
    assert names == ("none", "reference", "other_reference", "wrong_hint")


def test_the_findings_are_those_of_the_stored_signals(found):
    """See ADVANTAGES: ten tokens of a right trace at -0.2 and its answer at -1.2, of 17."""
    assert (found.rollouts, found.accuracy, found.null_kl) == (4, 0.5, 0.0)
    rows = {(r["context"], r["measure"]): r["value"] for r in found.measures.to_dicts()}
    assert rows["reference", "at"] == pytest.approx(-0.6)
    assert rows["reference", "negative_share"] == pytest.approx(11 / 17)
    assert rows["step_aligned", "before"] == pytest.approx(0.15)
    assert rows["step_aligned", "error"] == pytest.approx(-2.3)
    assert [verdict.word for verdict in found.verdicts] == ["not enough data"] * 2
    gaps = {r["measure"]: r["value"] for r in found.differences.to_dicts()}
    assert found.baseline == "step_aligned" and gaps["at"] == pytest.approx(-2.3 + 0.6)


def test_the_variance_is_that_of_the_rollouts(found):
    """Each problem has one right and one wrong sample: all of it is within."""
    assert (found.variance.between, found.variance.within) == (0, pytest.approx(0.5))
    assert found.detectable == detectable(found.variance, problems=3, samples=2, seeds=2)
    text = facts(SEEN, found)["Minimum detectable effect"]
    assert "with 2 seeds" in text and " at 2, " in text


def test_with_one_seed_the_effect_is_within_it(found):
    one = SEEN.model_copy(update={"seeds": (0,)})
    effect = detectable(found.variance, problems=3, samples=2, seeds=1)
    text = facts(one, replace(found, detectable=effect))["Minimum detectable effect"]
    assert "within this seed only" in text


def test_fewer_planned_rollouts_are_looked_at(store):
    few = SEEN.diagnose.model_copy(update={"rollouts": 1})
    found = diagnose(store, SEEN.model_copy(update={"diagnose": few}), PROBLEMS)
    assert (found.rollouts, found.accuracy, found.variance) == (2, 0, None)
    assert "2 or more" in facts(SEEN, found)["Minimum detectable effect"]


def test_a_planned_test_of_one_problem_detects_nothing(store):
    one = SEEN.model_copy(update={"problems": SEEN.problems.model_copy(update={"test": 1})})
    found = diagnose(store, one, PROBLEMS)
    assert found.variance is not None and found.detectable is None
    assert "problems.test of 2 or more" in facts(one, found)["Minimum detectable effect"]


@pytest.fixture(scope="module")
def prompted(store, tmp_path_factory):
    """The same with a system message of the teacher's own, and 3 of 4 right with it alone."""
    heed = SEEN.prompts.model_copy(update={"teacher_system": "Heed the hint."})
    experiment = SEEN.model_copy(update={"prompts": heed})
    copy = Store(tmp_path_factory.mktemp("prompted") / "sdcore.duckdb")
    for name in ("problems", "rollouts", "critiques", "contexts", "token_signals"):
        rows = store.rows(name, experiment_id=SEEN.experiment_id)
        copy.append_missing(**{name: _owned(rows, experiment)})
    samples = _owned(store.rows("teacher_samples", condition="diagnose"), experiment)
    own = samples.filter(context="reference").with_columns(
        context=pl.lit(OWN_PROMPT), teacher_sample_id="own " + pl.col("teacher_sample_id")
    )
    copy.append_missing(teacher_samples=pl.concat([samples, own]))
    return copy, experiment


def _owned(rows, experiment):
    return rows.with_columns(experiment_id=pl.lit(experiment.experiment_id))


def test_a_teacher_with_a_prompt_of_its_own_is_measured_without_a_context_too(prompted):
    copy, experiment = prompted
    planned = teacher_samples(copy, experiment, PROBLEMS)
    own = planned.filter(context=OWN_PROMPT).drop("context")
    assert len(own) and own.equals(planned.filter(context=NULL).drop("context"))
    found = diagnose(copy, experiment, PROBLEMS)
    rows = {(r["context"], r["measure"]): r["value"] for r in found.measures.to_dicts()}
    assert (rows[NULL, "teacher"], rows[OWN_PROMPT, "teacher"]) == (0.25, 0.75)
    assert rows[OWN_PROMPT, "gain"] == 0.5 and (NULL, "at") not in rows
    assert found.verdicts[-1].context == OWN_PROMPT
    page = render_diagnosis(copy, experiment, found)
    assert standing_alone(page) and OWN_PROMPT in page
    assert "The teacher&#39;s own prompt alone" in page
    said = {each.about: each.text for each in prospects(experiment, found)}
    assert OWN_PROMPT in said


def test_a_teacher_with_the_students_prompt_is_measured_once(store):
    assert OWN_PROMPT not in set(teacher_samples(store, SEEN, PROBLEMS)["context"])
    same = PromptsConfig(system="Be brief.", teacher_system="Be brief.")
    none = PromptsConfig(teacher_system="")
    own = PromptsConfig(system="Be brief.", teacher_system="")
    thinking = PromptsConfig(student_thinking=False, teacher_thinking=True)
    differ = [each.teacher_differs for each in (PromptsConfig(), same, none, own, thinking)]
    assert differ == [False, False, False, True, True]


def test_nothing_scored_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no rollout has been scored"):
        diagnose(Store(tmp_path / "sdcore.duckdb"), SEEN, PROBLEMS)


def test_text_tables_have_a_row_per_context(found):
    tables = dict(printable(SEEN, found))
    assert tables["Verdicts"]["context"].to_list() == ["reference", "step_aligned"]
    where = tables["Where the advantage lies, nats per token"]
    assert where["first wrong step"].to_list() == ["−0.60", "−2.30"]  # of two problems
    assert tables["Tokens"].row(2)[:3] == ("step_aligned", "4 of 4", "2.0")


def test_the_findings_are_plain_json(found):
    assert json.loads(json.dumps(as_dict(found)))["verdicts"][0]["word"] == "not enough data"


def test_the_page_stands_alone_and_escapes_what_models_and_files_say(page):
    assert standing_alone(page)
    assert "&lt;script&gt;alert(2)" in page and "&lt;/pre&gt;&lt;script&gt;alert(3)" in page
    assert "<script" not in page


def test_the_page_shows_each_trace_under_each_context_but_the_null_one(page):
    cards = [part.partition("</article>")[0] for part in page.split('<article class="card">')[1:]]
    assert len(cards) == 3
    for card in cards:
        assert card.count("<h4>") == 2 and "none" not in card


def test_a_page_without_anything_to_show_is_whole(store, found):
    """No critic, no baseline, no example."""
    none = replace(found, contexts=("none",), baseline=None, verdicts=(), variance=None)
    none = replace(none, measures=found.measures.clear(), differences=found.differences.clear())
    page = render_diagnosis(store, SEEN, replace(none, lengths=found.lengths.head(0)))
    assert standing_alone(page) and grids(none) == []


def test_the_same_trace_is_found_under_every_context(store, found):
    shown = examples(store, SEEN, found)
    assert [(each.correct, len(each.maps)) for each in shown] == [(False, 2), (False, 2), (True, 2)]
    for example in shown:
        texts = ["".join(t.text for line in m.lines for t in line.tokens) for m in example.maps]
        assert texts == [example.text] * 2


def certain(found):
    """The findings as of very many problems, which say the same: intervals without a width."""
    return replace(found, measures=found.measures.with_columns(low="value", high="value"))


def test_two_problems_that_say_the_same_promise_nothing(found, page):
    """A share of 1 - 0.025^(1/2) = 0.842 of other problems may be otherwise: 75 - 0.842 * 175."""
    told = dict(printable(SEEN, found)[0][1].iter_rows())
    assert told["all contexts"].startswith("No gain is shown: with no context")
    assert told["step_aligned"].startswith("no gain shown: +75 points (−72 to +96)")
    assert page.index("No gain is shown") < page.index('id="verdicts"')


def test_the_prospects_are_in_order_best_context_first(found):
    """All four samples of both problems are right with step_aligned, one of four without.

    With the reference both samples of the wrong rollouts are. After the error none is right. The
    file's conditions learn from all tokens.
    """
    (title, frame), *_ = printable(SEEN, certain(found))
    told = dict(frame.iter_rows())
    assert title == "What can be gained"
    assert list(told) == [
        "all contexts", "learning from all tokens", "learning from tokens after the error",
        "conditions of this file", "tokens after the error", "after the error", "the first token",
        "step_aligned", "reference",
    ]  # fmt: skip
    assert told["all contexts"] == (
        "At most +75 points (+75 to +75) with step_aligned, learning from all tokens: the model is "
        "right in 100% with it in the prompt, in 25% without."
    )
    assert told["learning from all tokens"] == (
        "at most +75 points (+75 to +75) with step_aligned, +75 points (+75 to +75) with reference."
    )
    assert told["learning from tokens after the error"] == (
        "no gain is shown. The student going on there by itself: −25 points (−25 to −25)."
    )
    assert told["conditions of this file"] == (
        "At most reference: +75 points (+75 to +75); step_aligned: +75 points (+75 to +75)."
    )
    assert told["reference"].startswith(
        "at most +50 points (+50 to +50): the model is right in 75%"
    )
    assert "goes on with the wrong value in 100%" in told["after the error"]
    assert "at most 0.30 nats" in told["the first token"] and "is 2:" in told["the first token"]


def test_the_teacher_has_a_grid_in_which_the_student_is_a_row(found):
    grid = next(grid for grid in grids(found) if grid.title == "What the teacher can do, %")
    text = grid.text()
    assert text["context"].to_list() == ["none", "reference", "step_aligned"]
    assert text["right"].to_list() == ["25 (4 to 88)", "75 (12 to 96)", "100 (16 to 100)"]
    assert text["difference"].to_list()[0] == ""


def with_measure(found, measure, value, low, high):
    """The findings with other numbers of a measure, for all contexts."""
    mine = pl.col("measure") == measure
    new = {"value": value, "low": low, "high": high}
    changed = found.measures.with_columns(
        pl.when(mine).then(pl.lit(number)).otherwise(name).alias(name)
        for name, number in new.items()
    )
    return replace(found, measures=changed)


def test_without_a_better_teacher_no_gain_is_promised(found):
    worse = with_measure(found, "gain", -0.1, -0.2, -0.05)
    told = dict(
        printable(SEEN, with_measure(worse, "gain_all", 0.06, -0.02, 0.14))[0][1].iter_rows()
    )
    assert told["all contexts"] == (
        "No gain is shown: with no context is the model found to be right more often, "
        "whichever tokens it writes. The largest difference is +6 points (−2 to +14) with "
        "reference, learning from all tokens."
    )
    assert told["learning from all tokens"] == "no gain is shown."
    assert told["step_aligned"].startswith("a loss: −10 points (−20 to −5)")


def test_a_gain_that_the_student_has_by_itself_is_none(found):
    """More right answers than from the question, but no more than without the context there."""
    alone = with_measure(found, "added_all", 0.0, -0.1, 0.1)
    assert dict(printable(SEEN, alone)[0][1].iter_rows())["all contexts"].startswith("No gain")


def test_where_no_wrong_step_is_known_the_whole_teacher_is_judged(found):
    masks = pl.col("measure").str.contains("^(right|gain|added)_")
    seen = replace(found, measures=found.measures.filter(~masks))
    told = dict(printable(SEEN, certain(seen))[0][1].iter_rows())
    assert told["all contexts"].startswith(
        "A gain of +75 points from step_aligned (+75 to +75) can"
    )
    none = dict(printable(SEEN, with_measure(seen, "gain", 0.06, -0.02, 0.14))[0][1].iter_rows())
    assert none["all contexts"].startswith(
        "No gain is shown: with no context is the model found to be right more often. The "
        "largest difference is +6 points with reference (−2 to +14): "
    )


def with_branches(found, **values):
    """The findings with the gains of branches: value, lower and upper bound by place."""
    rows = [
        {"context": "step_aligned", "measure": f"viable_{place}", "tokens": 9, "rollouts": 3}
        | dict(zip(("value", "low", "high"), interval, strict=True))
        for place, interval in values.items()
    ]
    added = pl.DataFrame(rows).select(found.measures.columns).cast(dict(found.measures.schema))
    return replace(found, measures=pl.concat([found.measures, added]))


def test_the_gain_of_branches_is_that_at_the_error(found):
    """The student is right in 25 %: of the other 75, 40 % would become right at the error."""
    seen = with_branches(found, before=(0.2, 0.1, 0.3), at=(0.4, 0.2, 0.6), after=(0.9, 0.8, 1.0))
    told = dict(printable(SEEN, seen)[0][1].iter_rows())["tokens to learn from"]
    assert "+20 points (+10 to +30) before the first wrong step, +40 points (+20 to +60) at" in told
    assert "brings about +30 points at most" in told and "tokens =" not in told


def test_branches_that_do_not_help_promise_nothing(found):
    seen = with_branches(found, at=(0.4, -0.1, 0.8), after=(0.9, 0.8, 1.0))
    told = dict(printable(SEEN, seen)[0][1].iter_rows())["tokens to learn from"]
    assert "No gain is shown at the first wrong step." in told and "at most" not in told


def test_another_beginning_of_the_response_is_named(found):
    told = dict(printable(SEEN, with_measure(found, "first_kl", 4.4, 4.0, 5.0))[0][1].iter_rows())
    assert "expects another beginning" in told["the first token"]
    assert "in nats: reference 4.40, step_aligned 4.40." in told["the first token"]


def test_a_teacher_that_was_not_sampled_is_not_judged(store):
    none = SEEN.diagnose.model_copy(update={"teacher_samples": 0})
    without = SEEN.model_copy(update={"diagnose": none})
    found = diagnose(store, without, PROBLEMS)
    assert "teacher" not in found.measures["measure"].to_list()
    frame = printable(without, found)[0][1]
    assert frame["text"].to_list() == [
        "The teacher was not measured. diagnose.teacher_samples is 0."
    ]
