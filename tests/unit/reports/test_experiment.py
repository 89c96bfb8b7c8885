import re

import pytest

from sdcore.analysis.intervals import TWO_SEEDS
from sdcore.config import as_toml, load_experiment
from sdcore.errors import DataError
from sdcore.reports.experiment import render_report, write_report
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.elements import Elements, standing_alone
from tests.helpers.example import EXPERIMENT, critique, fill, fill_diagnosis, run_row


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb"))


@pytest.fixture(scope="module")
def page(store):
    return render_report(store, EXPERIMENT.experiment_id)


def table(page, title):
    """Cell texts of the table whose scroll region has this label."""
    part = page[page.index(f'aria-label="{title}"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", " ", cell).split() for cell in row] for row in cells]


def test_the_page_stands_alone(page):
    assert standing_alone(page)


def test_ids_are_unique_and_links_lead_somewhere(page):
    tags = Elements(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert targets == {f"#{name}" for name in ids} & targets


def test_text_from_tables_is_escaped(page):
    assert "A &lt;b&gt;small&lt;/b&gt; &amp; hand-made run" in page
    assert "<script>" not in page
    assert "42 - 5 = 37 &lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_table_holds_the_scores(page):
    # Two of six samples of the base are right; step_aligned 4 of 6 at round 2, 5 of 6 at round 4.
    base, grpo, reference, aligned = table(page, "Chosen on validation, scored once on test")[1:]
    assert base[0] == ["base"] and base[1][0] == "33.3"
    assert grpo[1][0] == "50.0"
    assert reference[1][0] == "50.0"
    assert aligned[0] == ["step_aligned"] and aligned[1][0] == "83.3"
    assert aligned[4][0] == "+50.0"
    assert base[4] == []


def test_paired_differences_name_both_sides(page):
    rows = {" ".join(row[0]): row[1] for row in table(page, "Paired differences")[1:]}
    assert rows["step_aligned − base"][0] == "+50.0"
    assert rows["step_aligned − reference"][0] == "+33.3"
    assert rows["reference − grpo"][0] == "+0.0"


def test_what_the_feedback_added_has_a_row_per_pair_and_a_note_for_what_is_missing(page, tmp_path):
    # The last checkpoints are compared: step_aligned 5 of 6, reference 3 of 6.
    rows = table(page, "What the feedback added")[1:]
    assert [" ".join(row[0]) for row in rows] == [
        "An aligned context instead of the reference solution", "step_aligned − reference",
    ]  # fmt: skip
    assert rows[1][1][0] == "+33.3" and "seed" not in rows[1][1]
    assert page.count("Not in this experiment") == 1
    assert "Any context" in page and "It takes other_reference, wrong_hint or shuffled." in page
    started = Store(tmp_path / "sdcore.duckdb")
    started.append_missing(experiments=TABLES["experiments"].frame([run_row()]))
    assert "What the feedback added" not in render_report(started, EXPERIMENT.experiment_id)


def test_advantages_by_region(page):
    # Correct rollouts have 17 tokens. Under `reference` its ten step tokens at -0.2 and the answer
    # are below -0.1, 11 of 17; under `step_aligned` only the answer is, 1 of 17.
    rows = {tuple(row[0] + row[1]): row[2:] for row in table(page, "Advantage by region")[1:]}
    first = [cell[0] for cell in rows["step_aligned", "first"]]
    assert first == ["+0.15", "−2.30", "—", "1.00", "5.9"]
    assert [cell[0] for cell in rows["reference", "last"]][:2] == ["−0.20", "−0.60"]
    assert rows["reference", "last"][4][0] == "64.7"
    assert [cell[0] for cell in rows["grpo", "first"]] == ["−0.70", "−0.70", "—", "0.50", "100.0"]


def test_the_cost_is_that_of_the_chosen_checkpoints(page):
    # GRPO's gain is 100 / 6 points at round 2, for 200 tokens; step_aligned's 50 at round 4, after
    # four updates of 1.5 s.
    rows = {row[0][0]: [cell[0] for cell in row[1:]] for row in table(page, "Cost")[1:]}
    assert rows["grpo"][:3] == ["+16.7", "200", "12"]
    assert rows["step_aligned"] == ["+50.0", "400", "8", "0", "0", "0.00", "6"]


def test_health_is_shown_once_something_is_trained(page, tmp_path):
    rows = table(page, "Health of training")[1:]
    assert [[" ".join(cell) for cell in row[:4]] for row in rows] == [
        [name, "8", "0%", "8"] for name in EXPERIMENT.conditions
    ]
    store = Store(tmp_path / "sdcore.duckdb")
    store.append_missing(experiments=TABLES["experiments"].frame([run_row()]))
    assert "Health of training" not in render_report(store, EXPERIMENT.experiment_id)


def test_intervals_say_what_they_cover_and_seeds_have_their_own_difference(page):
    assert f"they cover {TWO_SEEDS}" in " ".join(page.split())
    rows = {" ".join(row[0]): row[1] for row in table(page, "Paired differences")[1:]}
    seeds = " ".join(rows["step_aligned − reference"])
    assert seeds.endswith("seed 0: +33.3, 1: +33.3")


def test_what_the_page_says_of_seeds_and_equality_is_what_the_rows_say(page, tmp_path):
    """GRPO has another objective and other rollouts per question; its seed 0 trains nothing."""
    assert "differ in their feedback only" not in page
    limits = " ".join(page[page.index('id="limits"') :].split())
    assert "Number of seeds compared, by condition: 2. Intervals" in limits
    store = fill(Store(tmp_path / "sdcore.duckdb"), idle=[("grpo", 0)])
    lost = " ".join(render_report(store, EXPERIMENT.experiment_id).split())
    assert "Number of seeds compared, by condition: 1 or 2. Intervals" in lost
    assert "Where there is one, another seed may give another order." in lost


def test_what_trained_nothing_is_marked_and_has_no_number(tmp_path):
    idle = [("reference", 0), ("reference", 1), ("grpo", 0)]
    store = fill(Store(tmp_path / "sdcore.duckdb"), idle=idle)
    page = render_report(store, EXPERIMENT.experiment_id)
    assert "reference: trained nothing: no update in 8 rounds; not compared" in page
    tiles = page[page.index('class="tiles"') :].split("</ul>")[0]
    (tile,) = [part for part in tiles.split("<li")[1:] if ">reference<" in part]
    assert "<b>—</b>" in tile and "trained nothing" in tile
    rows = table(page, "Chosen on validation, scored once on test")[1:]
    assert rows[2] == [["reference"], ["trained", "nothing"]]
    assert rows[1][0] == ["grpo", "seed", "0", "trained", "nothing"]
    health = {row[0][0]: row[2] for row in table(page, "Health of training")[1:]}
    assert health == {"grpo": ["50%"], "reference": ["100%"], "step_aligned": ["0%"]}


def test_one_seed_says_so_wherever_an_interval_is(tmp_path):
    idle = [(name, 1) for name in EXPERIMENT.conditions]
    page = render_report(
        fill(Store(tmp_path / "sdcore.duckdb"), idle=idle), EXPERIMENT.experiment_id
    )
    # tiles, 2 tables, pairs (2), curves, limits
    assert page.count("problems, within this seed only") == 7


def test_an_example_has_its_critique(page, tmp_path):
    assert "Critique by" not in page
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    wrong = store.rows("rollouts", condition="reference", correct=False, purpose="train", round=0)
    made = [critique(row, 2, raw="<b>words</b>") for row in wrong.to_dicts()]
    store.append_missing(critiques=TABLES["critiques"].frame(made))
    page = render_report(store, EXPERIMENT.experiment_id)
    assert page.count("case D, wrong from step 2 on. ") == 2  # a wrong rollout of each seed
    assert "&lt;b&gt;words&lt;/b&gt;" in page


def test_settings_on_the_page_give_the_same_experiment(page, tmp_path):
    path = tmp_path / "again.toml"
    path.write_text(as_toml(EXPERIMENT.model_dump(mode="json")), "utf-8")
    assert load_experiment(path) == EXPERIMENT


def test_an_experiment_that_has_only_started_has_a_page(tmp_path):
    store = Store(tmp_path / "sdcore.duckdb")
    store.append_missing(experiments=TABLES["experiments"].frame([run_row()]))
    path = write_report(store, EXPERIMENT.experiment_id, tmp_path / "reports")
    assert path == tmp_path / "reports" / f"{EXPERIMENT.experiment_id}.html"
    assert "No condition has been scored yet" in path.read_text("utf-8")


def test_an_unknown_experiment_is_refused(store):
    with pytest.raises(DataError, match="no such experiment"):
        render_report(store, "small-00000000")


def test_the_preflight_of_the_same_experiment_changes_nothing(page, tmp_path):
    both = fill_diagnosis(fill(Store(tmp_path / "sdcore.duckdb")))
    assert render_report(both, EXPERIMENT.experiment_id) == page


def test_trials_stand_in_a_table_and_those_that_lost_in_no_other(tmp_path):
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    known = {"experiment_id": EXPERIMENT.experiment_id, "condition": "family", "extension": 0}
    rows = [
        known
        | {
            "trial": name, "setting_values": '{"learning_rate": 0.001}', "seeds": 2,
            "validation": score, "sampled_tokens": 400.0, "chosen": edge is not None,
            "why": f"why {name}", "edge": edge,
        }
        for name, score, edge in (("grpo", 0.5, None), ("reference", 0.625, "an <edge>"))
    ]  # fmt: skip
    store.append_missing(trials=TABLES["trials"].frame(rows))
    page = render_report(store, EXPERIMENT.experiment_id)
    assert standing_alone(page)
    _, family, lost, won = table(page, "Trials")
    assert family == [["family:", "2", "trials"]]
    assert lost[0] == ["grpo"] and lost[2:4] == [["50.0"], ["2"]] and lost[5] == ["why", "grpo"]
    assert won[0] == ["reference"] and won[2] == ["62.5"]
    assert "the chosen trial, reference, is at an edge: an &lt;edge&gt;" in page
    conditions = [row[0] for row in table(page, "Conditions")[1:]]
    assert conditions == [["reference"], ["step_aligned"]]
    chosen = store.query("SELECT DISTINCT condition FROM chosen_checkpoints ORDER BY ALL")
    assert chosen["condition"].to_list() == ["reference", "step_aligned"]
