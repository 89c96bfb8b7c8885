"""`sdcore design` with real parts at its smallest: interrupted, resumed, and once more."""

import shutil
from contextlib import contextmanager

import polars as pl
import pytest
from mlflow import MlflowClient

import flows.design as flow
import tasks.design as stages
from sdcore.config import Experiment, load_experiment
from sdcore.errors import DataError
from sdcore.reports.design import as_dict
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tasks.prepare import prepare
from tasks.run.condition_run import base_run
from tasks.run.session import Session
from tests.helpers import searches
from tests.helpers.runs import tables

FILE = """
name = "tiny"
seeds = [3]
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 4, validation = 2, test = 2 }
sampling = { max_new_tokens = 96, batch_size = 64 }
training = { rounds = 2, questions_per_round = 2 }
evaluation = { every = 2, samples = 1, validation_samples = 1, resamples = 100 }
diagnose = { problems = 3, rollouts = 1, teacher_samples = 1 }
design = { contexts = ["step_aligned"], rungs = 2, eta = 2, confirm_seeds = 3 }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.aligned]
objective = "distill"
context = "step_aligned"
learning_rate = 4e-4
"""
WINNER = "step_aligned-until_error"


class Confirmation:
    """In place of the ordinary run that confirms: its comparison alone, by hand."""

    def fn(self, experiment, root):
        row = {
            "experiment_id": experiment.experiment_id, "condition": WINNER, "baseline": "aligned",
            "metric": "avg_at_k", "budget": "epochs", "difference": 0.045, "low": 0.032,
            "high": 0.058, "covers": "problems and seeds", "seeds": 3, "caveat": None,
        }  # fmt: skip
        with Session(root) as session:
            prepare.fn(base_run(session, experiment))
            session.store.append_missing(comparisons=TABLES["comparisons"].frame([row]))


@contextmanager
def in_this_process(said):
    """A search without what other tests look at: the preflight's page, the run that confirms."""
    grids = stages._grids

    def favour(base, run, split, round_):
        found = grids(base, run, split, round_)
        return {name: grid * 0 + (name == WINNER) for name, grid in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        searches.without_server_and_pages(patch, said)
        patch.setattr(flow, "compare_contexts", Confirmation())
        patch.setattr(stages, "_grids", favour)
        yield patch


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that is cut off after its first rung, loses a checkpoint, and goes on, twice."""
    folder = tmp_path_factory.mktemp("design")
    (folder / "tiny.toml").write_text(FILE, "utf-8")
    experiment, root = load_experiment(folder / "tiny.toml"), folder / "runs"
    said = list[str]()

    def halve_once(base, search, rung, names):
        stages.halve.fn(base, search, rung, names)
        raise KeyboardInterrupt

    with in_this_process(said):
        with pytest.MonkeyPatch.context() as cut:
            cut.setattr(flow, "halve", halve_once)
            with pytest.raises(KeyboardInterrupt):
                flow.design.fn(experiment, root)
        shutil.rmtree(next(root.glob(f"checkpoints/*/{WINNER}/seed-3/round-0001")))
        found = as_dict(flow.design.fn(experiment, root))
        before = tables(root)
        again = as_dict(flow.design.fn(experiment, root))
        unchanged = all(frame.equals(before[name]) for name, frame in tables(root).items())
    return root, found, unchanged and again == found, said


def test_the_budget_is_said_before_anything_is_sampled_and_kept(finished):
    workspace, found, _, said = finished
    # Preflight: 3 problems x (1 + 2 contexts x 5 starts), 2 of the base. Rung 1: 3 candidates x (1
    # round x 2 questions + 2 on validation), rung 2: 2 x 4. Confirmation: 4 + 6 runs x (2 x 2 + 4).
    bounds = [96 * samples for samples in (35, 12, 8, 52)]
    assert [row["at_most"] for row in found["costs"]] == [*bounds, sum(bounds)]
    budget = next(place for place, text in enumerate(said) if f"at most {sum(bounds):,}" in text)
    assert budget < next(place for place, text in enumerate(said) if "after 0 rounds" in text)
    assert all(0 < row["sampled"] <= row["at_most"] for row in found["costs"][:3])
    store = Store(workspace / "sdcore.duckdb")
    sampled = sum(
        store.query(f"SELECT sum(len(response_ids))::BIGINT AS n FROM {table}")["n"][0]
        for table in ("rollouts", "teacher_samples")
    )
    assert found["costs"][-1]["sampled"] == sampled


def test_every_decision_is_a_row(finished):
    workspace, found, *_ = finished
    rows = Store(workspace / "sdcore.duckdb").rows("candidates").sort("rung", "rank")
    assert rows.group_by("rung", maintain_order=True).len()["len"].to_list() == [3, 3, 2, 2]
    assert rows.filter(rung=1)["rounds"].unique().to_list() == [1]
    fates = dict(rows.filter(rung=2).select("candidate", "fate").iter_rows())
    assert fates[WINNER] == "kept" and len(fates) == 2
    masked = rows.filter(rung=0, candidate=WINNER).row(0, named=True)
    whole = rows.filter(rung=0, candidate="aligned").row(0, named=True)
    assert masked["aim"] == pytest.approx(1) and 0 < whole["aim"] < 1
    assert masked["teacher"] == whole["teacher"] and masked["auc"] == whole["auc"]
    assert (found["winner"], found["baseline"], found["word"]) == (WINNER, "aligned", "confirmed")
    said = (
        "+4.5 points (+3.2 to +5.8; the interval covers problems and seeds) against aligned, avg@1 "
        "on 2 test problems, 3 seeds"
    )
    assert found["reason"] == said == rows.filter(rung=3, candidate=WINNER)["reason"].item()


def test_lineages_go_on_from_rung_to_rung_and_the_confirmation_is_fresh(finished):
    workspace, found, *_ = finished
    store = Store(workspace / "sdcore.duckdb")
    search = store.rows("rollouts", experiment_id=found["search_id"])
    assert set(search["purpose"]) == {"diagnose", "train", "validation"}
    trained = search.filter(purpose="train").group_by("condition").agg(pl.col("round").unique())
    lengths = sorted(len(rounds) for rounds in trained["round"])
    assert lengths == [1, 2, 2]  # one was dropped after the first rung
    assert len(search.filter(purpose="train")) == 2 * sum(lengths)
    assert store.rows("updates", experiment_id=found["search_id"])["step"].len() == sum(lengths)
    run = store.rows("experiments", experiment_id=found["confirmation_id"])["config"][0]
    assert Experiment.model_validate_json(run).seeds == (4, 5, 6)
    tested = store.rows("problems", experiment_id=found["confirmation_id"], split="test")
    assert len(tested) == 2 and not set(tested["problem_id"]) & set(search["problem_id"])


def test_the_same_again_changes_nothing(finished):
    assert finished[2]


def test_page_file_and_mlflow_have_the_result(finished):
    workspace, found, *_ = finished
    page = (workspace / "reports" / f"{found['design_id']}-design.html").read_text("utf-8")
    assert WINNER in page and "step_aligned-error" in page
    path = workspace / "reports" / f"{found['design_id']}-winner.toml"
    assert path.read_text("utf-8") == found["file"]
    assert list(load_experiment(path).conditions) == ["aligned", WINNER]
    preflight = f"{found['search_id']}-diagnosis.html"
    assert f'href="{preflight}"' in page and (workspace / "reports" / preflight).exists()
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    folders = {each.name: each.experiment_id for each in client.search_experiments()}
    (run,) = client.search_runs([folders["tiny"]])
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"candidates.csv", "design.html", "winner.toml"} <= files
    statuses = {each.info.status for each in client.search_runs([*folders.values()])}
    assert statuses == {"FINISHED"}


def test_a_confirmation_on_problems_that_the_search_has_seen_does_not_train(finished, tmp_path):
    """As after `sdcore resume` of the search's run, which older code did not refuse."""
    root, found, *_ = finished
    copy = shutil.copytree(root, tmp_path / "runs")
    store = Store(copy / "sdcore.duckdb")
    tested = store.rows("problems", experiment_id=found["confirmation_id"], split="test")
    seen = store.rows("rollouts", experiment_id=found["search_id"], purpose="validation").head(1)
    seen = seen.with_columns(rollout_id=pl.lit("seen"), problem_id=pl.lit(tested["problem_id"][0]))
    store.append_missing(rollouts=seen.with_columns(purpose=pl.lit("test")))
    with in_this_process([]) as patch:
        patch.setattr(Confirmation, "fn", lambda *arguments: pytest.fail("it is trained"))
        with pytest.raises(DataError, match="give the file another name"):
            flow.design.fn(load_experiment(root.parent / "tiny.toml"), copy)


def test_decisions_follow_the_tables_they_rest_on(finished, tmp_path):
    """As after `sdcore rescore`: other scores of a rung, and a confirmation that lost a seed."""
    root, found, *_ = finished
    copy = shutil.copytree(root, tmp_path / "runs")
    experiment, store = load_experiment(root.parent / "tiny.toml"), Store(copy / "sdcore.duckdb")
    compared = store.rows("comparisons", experiment_id=found["confirmation_id"])
    store.replace(comparisons=compared.with_columns(seeds=pl.lit(2, pl.Int64)))
    stop = {
        "experiment_id": found["confirmation_id"], "condition": "aligned", "seed": 5, "round": 1,
        "good_round": 0, "sign": "format", "reason": "40%",
    }  # fmt: skip
    store.append_missing(stops=TABLES["stops"].frame([stop]))
    with in_this_process([]) as patch:
        grids = stages._grids

        def halved(base, run, split, round_):
            return {name: grid / 2 for name, grid in grids(base, run, split, round_).items()}

        patch.setattr(stages, "_grids", halved)
        now = as_dict(flow.design.fn(experiment, copy))
    assert (now["winner"], now["word"]) == (WINNER, "not shown")
    assert now["reason"].endswith(
        "2 seeds of 3; seeds were lost, aligned: seed 5 stopped after round 1 without a good "
        "checkpoint"
    )
    rows = store.rows("candidates")
    assert len(rows) == len(found["candidates"]) and now["costs"] == found["costs"]
    assert rows.filter(rung=2, candidate=WINNER)["score"].to_list() == [0.5]
    old = store.query("FROM superseded.candidates")
    assert old.group_by("rung").len().sort("rung").rows() == [(1, 3), (2, 2), (3, 2)]
