"""The preflight end to end with real parts: model, DuckDB file, Prefect server, MLflow store."""

import json
import sqlite3
from contextlib import closing

import polars as pl
import pytest
from mlflow import MlflowClient

from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import sdcore

SMALL = [
    "seeds=[3]", "problems.train=8", "problems.validation=2", "problems.test=2",
    "training.questions_per_round=4", "evaluation.resamples=200", "diagnose.problems=6",
    "diagnose.branches=2",
    "contexts.own='Step {{ critique.first_wrong_step }} of {{ trace }} is wrong.'",
]  # fmt: skip
CONTEXTS = [
    "none", "reference", "step_aligned", "full_quote", "omission", "shuffled", "other_reference",
    "wrong_hint", "own",
]  # fmt: skip


def diagnose(workspace, *overrides):
    where = ["--workspace", workspace, "--json"]
    return json.loads(sdcore("diagnose", QUICKSTART, *SMALL, *overrides, *where).stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("workspace")
    return workspace, diagnose(workspace)


def rows(workspace, table):
    return Store(workspace / "sdcore.duckdb").rows(table, condition="diagnose")


def test_every_context_is_scored_on_the_same_tokens(finished):
    signals = rows(finished[0], "token_signals")
    assert sorted(signals["context"].unique()) == sorted(CONTEXTS)
    rollouts = rows(finished[0], "rollouts")
    assert len(rollouts) == 12 and set(rollouts["purpose"]) == {"diagnose"}
    per_context = signals.group_by("context").agg(
        pl.struct("rollout_id", "position", "token_id", "student_logprob").sort().alias("seen")
    )
    whole = per_context.filter(pl.col("context") != "own")["seen"]
    assert all(seen.equals(whole[0]) for seen in whole)
    assert len(whole[0]) == rollouts["response_ids"].list.len().sum()


def test_the_null_check_is_silent_and_the_others_are_not(finished):
    largest = rows(finished[0], "token_signals").group_by("context").agg(pl.col("kl").max())
    kl = dict(largest.iter_rows())
    assert kl.pop("none") <= 1e-4 and min(kl.values()) > 0.1
    assert finished[1]["null_kl"] <= 1e-4


def test_the_findings_name_every_context(finished):
    verdicts = finished[1]["verdicts"]
    assert [verdict["context"] for verdict in verdicts] == CONTEXTS[1:]
    assert {row["context"] for row in finished[1]["differences"]} == set(CONTEXTS) - {
        "none", "step_aligned",
    }  # fmt: skip


def test_the_teacher_samples_with_every_context_and_after_the_error(finished):
    """Four per problem and context, and as many at the error where a rollout is wrong.

    Those after the samples from the question are the ones that show a wrong rollout's context.
    """
    samples, rollouts = rows(finished[0], "teacher_samples"), rows(finished[0], "rollouts")
    counts = samples.group_by("context", "start", "problem_id").len()
    after = counts.filter(start="after_question")["len"]
    assert set(counts.filter(pl.col("start") != "after_question")["len"]) == {4}
    assert set(after) <= {2, 4} and sorted(counts["context"].unique()) == sorted(CONTEXTS)
    critiques = rows(finished[0], "critiques").select("rollout_id", "first_wrong_step")
    judged = rollouts.join(critiques, on="rollout_id")
    wrong = judged.filter(~pl.col("correct"), pl.col("first_wrong_step").is_not_null())
    from_error = samples.filter(start="error").join(judged, on="rollout_id", suffix="_student")
    assert set(from_error["problem_id"]) == set(wrong["problem_id"])
    for row in from_error.iter_rows(named=True):
        kept = row["prefix_tokens"]
        assert row["prompt_ids"][-kept:] == row["response_ids_student"][:kept]
        whole, own = parse_trace(row["text"]), parse_trace(row["text_student"])
        step = row["first_wrong_step"]
        assert whole.steps[:step] == own.steps[:step]
    question = samples.filter(start="question")
    assert set(question["prefix_tokens"]) == {0} and question["reaction"].null_count() == len(
        question
    )
    measured = {(row["context"], row["measure"]): row["value"] for row in finished[1]["measures"]}
    share = question.filter(context="reference").select(pl.col("correct").mean()).item()
    assert measured["reference", "teacher"] == pytest.approx(share)
    own = question.filter(context="none").select(pl.col("correct").mean()).item()
    assert measured["reference", "gain"] == pytest.approx(share - own)


def test_branches_force_a_token_that_the_rollout_does_not_have(finished):
    branches = rows(finished[0], "branches")
    rollouts = rows(finished[0], "rollouts").select("rollout_id", "correct", own_ids="response_ids")
    joined = branches.drop("correct").join(rollouts, on="rollout_id")
    assert not joined["correct"].any() and "none" not in joined["context"]
    assert joined.group_by("context", "rollout_id").len()["len"].max() == 2
    for row in branches.join(rollouts.drop("correct"), on="rollout_id").iter_rows(named=True):
        assert row["agrees"] == (row["forced_id"] == row["own_ids"][row["position"]])
        assert (row["correct"] is None) == row["agrees"] == (not row["resampled_ids"])
    other = branches.filter(~pl.col("agrees"), context="step_aligned")
    share = other.select(pl.col("correct").mean()).item()
    measured = {(row["context"], row["measure"]): row["value"] for row in finished[1]["measures"]}
    assert measured["step_aligned", "viable"] == pytest.approx(share)


def test_the_controls_show_another_solution_and_a_wrong_one(finished):
    problems = Store(finished[0] / "sdcore.duckdb").rows("problems", split="train")
    solutions = dict(problems.select("problem_id", "solution").iter_rows())
    answers = dict(problems.select("solution", "reference").iter_rows())
    joined = rows(finished[0], "contexts").join(rows(finished[0], "rollouts"), on="rollout_id")
    other = joined.filter(context="other_reference").select("problem_id", "text")
    assert len(other) == 12 and other["problem_id"].n_unique() == other.n_unique() == 6
    for problem_id, text in other.iter_rows():
        assert text != solutions[problem_id] and answers[text] != answers[solutions[problem_id]]
    wrong = joined.filter(context="wrong_hint").select("problem_id", "text")
    assert len(wrong) == 12
    for problem_id, text in wrong.iter_rows():
        answer = parse_trace(text).answer
        assert answer is not None and answer != answers[solutions[problem_id]]


def test_page_figure_artifacts_and_metrics_are_there(finished):
    workspace, found = finished
    names = {path.suffix for path in (workspace / "reports").iterdir()}
    assert names == {".html", ".png"}
    with closing(sqlite3.connect(workspace / "prefect" / "prefect.db")) as prefect:
        artifacts = {key for (key,) in prefect.execute("SELECT key FROM artifact")}
    assert "quickstart-diagnosis" in artifacts
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    logged = {run.info.run_name: run for run in runs}
    metrics = logged["diagnose/seed-3"].data.metrics
    for row in found["measures"]:
        assert metrics[f"{row['context']}/{row['measure']}"] == row["value"]
    parent = next(run for name, run in logged.items() if name.startswith("quickstart-"))
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"diagnosis.html", "diagnosis.png", "diagnosis.csv"} <= files
    assert parent.info.status == "FINISHED"


@pytest.mark.night
def test_a_wider_one_does_what_is_missing_and_the_same_again_nothing(finished):
    workspace, found = finished
    tables = ("rollouts", "critiques", "contexts", "token_signals", "teacher_samples", "branches")
    before = {name: rows(workspace, name) for name in tables}
    wider = diagnose(workspace, "diagnose.problems=8", "diagnose.rollouts=1")
    assert wider["rollouts"] == 8
    after_wider = {name: rows(workspace, name) for name in tables}
    for name, frame in before.items():
        after, key = after_wider[name], TABLES[name].key
        assert len(after) > len(frame) or name == "branches"  # of wrong rollouts only
        assert after.join(frame.select(key), on=key, how="semi").sort(key).equals(frame.sort(key))
    assert diagnose(workspace) == found
    assert all(rows(workspace, name).equals(frame) for name, frame in after_wider.items())


def test_contexts_are_listed_with_what_they_test():
    listed = json.loads(sdcore("contexts", "--json").stdout)
    assert len(listed) == 11 and all(row["tests"] and row["predicted"] for row in listed)


def test_a_mistaken_context_is_a_message(tmp_path):
    arguments = ["diagnose", QUICKSTART, "diagnose.contexts=['x']", "--workspace", tmp_path]
    result = sdcore(*arguments, check=False)
    assert result.returncode == 1 and "no context of this name" in result.stderr
    assert not list(tmp_path.iterdir())
