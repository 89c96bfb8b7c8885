import json
from dataclasses import replace

import pytest

from sdcore.analysis.power import detectable
from sdcore.analysis.preflight import contexts_of, diagnose
from sdcore.config import load_experiment
from sdcore.errors import DataError
from sdcore.reports.preflight import as_dict, examples, facts, grids, printable, render_diagnosis
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


def test_nothing_scored_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no rollout has been scored"):
        diagnose(Store(tmp_path / "sdcore.duckdb"), SEEN, PROBLEMS)


def test_text_tables_have_a_row_per_context(found):
    tables = dict(printable(SEEN, found))
    assert tables["Verdicts"]["context"].to_list() == ["reference", "step_aligned"]
    where = tables["Where the advantage lies, nats per token"]
    assert where["first wrong step"].to_list() == [
        "−0.60 (−0.60 to −0.60)",
        "−2.30 (−2.30 to −2.30)",
    ]
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
