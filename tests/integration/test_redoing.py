"""A run that is killed, resumed, rerun or shared between processes ends as an undisturbed one."""

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import duckdb
import polars as pl
import pytest
from mlflow import MlflowClient

from sdcore.config import load_experiment
from sdcore.models.weight_files import folder_digest
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.system.ports import free_port
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import (
    assert_same,
    count,
    kill,
    metrics,
    sdcore,
    start,
    tables,
    wait_for,
    weights,
)
from tests.helpers.small import ID, SMALL, run
from tests.helpers.tiny import flip

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.mark.night  # by day, tests/faults/test_points.py kills a run
@pytest.mark.parametrize("rollouts", [40, 200])
def test_killed_and_started_again_it_ends_as_if_never_interrupted(finished, tmp_path, rollouts):
    process = start("run", QUICKSTART, *SMALL, "--workspace", tmp_path)
    wait_for(process, lambda: count(tmp_path, "rollouts") >= rollouts)
    kill(process)
    run(tmp_path)
    assert_same(tmp_path, finished[0])


@pytest.mark.night
@pytest.mark.parametrize(
    "updates", [pytest.param(1, id="in the first rounds"), pytest.param(4, id="after a checkpoint")]
)
def test_rounds_without_a_checkpoint_are_made_again(tmp_path, updates):
    rare = [QUICKSTART, *SMALL, "training.rounds=4", "evaluation.every=4", "training.save_every=4"]
    sdcore("run", *rare, "--workspace", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start("run", *rare, "--workspace", killed)
    wait_for(process, lambda: count(killed, "updates") >= updates)
    kill(process)
    sdcore("run", *rare, "--workspace", killed)
    assert_same(killed, tmp_path / "whole")


@pytest.mark.night
def test_a_lost_checkpoint_is_trained_again_from_the_one_before(finished, tmp_path):
    workspace = shutil.copytree(finished[0], tmp_path / "copy")
    shutil.rmtree(next(workspace.glob("checkpoints/*/reference/seed-3/round-0002")))
    flip(next(workspace.glob("checkpoints/*/grpo/seed-3/round-0003/*.safetensors")))
    redo = ["rerun", "quickstart", "--from", "evaluate", "--condition", "reference", "--round", 2]
    result = sdcore(*redo, "--workspace", workspace)
    said = " ".join(result.stderr.split())  # lines wrap
    for lost in ("reference/seed-3", "grpo/seed-3"):
        assert f"{lost}: retrained to the same weights" in said
    assert_same(workspace, finished[0])
    assert set(Store(workspace / "sdcore.duckdb").query("FROM superseded.scores")["round"]) == {2}


@pytest.mark.night
def test_how_often_checkpoints_are_written_changes_no_result(finished, tmp_path):
    often = ["training.save_every=1", "--workspace", tmp_path]
    process = start("run", QUICKSTART, *SMALL, *often)
    wait_for(process, lambda: count(tmp_path, "updates") >= 2)
    kill(process)
    run(tmp_path)  # goes on, with the file's own setting
    found, expected = tables(tmp_path), tables(finished[0])
    differing = [name for name in TABLES if not found[name].equals(expected[name])]
    assert differing == ["experiments"]  # which tells how it was started
    assert weights(tmp_path) == weights(finished[0]) and metrics(tmp_path) == metrics(finished[0])


@pytest.mark.night
def test_the_same_run_twice_at_once_is_shared_and_ends_as_one(finished, tmp_path):
    started = [start("run", QUICKSTART, *SMALL, "--workspace", tmp_path) for _ in range(2)]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert_same(tmp_path, finished[0])


ONE_NODE = [["--standalone", "--nproc-per-node=2"]]


def two_nodes() -> list[list[str]]:
    """What torchrun is given on each of two nodes, here of one machine, with a process each."""
    meeting = ["--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    return [[*meeting, f"--node-rank={rank}"] for rank in range(2)]


def torchrun(*arguments: object, nodes: list[list[str]] = ONE_NODE) -> tuple[int, str]:
    """The command on two processes: exit status and standard error of the first node."""
    program = ["--no-python", str(Path(sys.executable).with_name("sdcore")), *map(str, arguments)]
    threads = os.environ | {"OMP_NUM_THREADS": "2"}  # torchrun's own choice is 1
    launch = [sys.executable, "-m", "torch.distributed.run"]
    others = [subprocess.Popen([*launch, *node, *program], env=threads, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL) for node in nodes[1:]]  # fmt: skip
    first = subprocess.run(
        [*launch, *nodes[0], *program], env=threads, capture_output=True, text=True
    )
    assert all(bool(other.wait()) == bool(first.returncode) for other in others), first.stderr
    return first.returncode, first.stderr


@pytest.mark.night
@pytest.mark.parametrize(("nodes", "sharded"), [(1, True), (2, True), (2, False)])
def test_over_two_processes_a_run_gives_the_numbers_of_one(nodes, sharded, finished, tmp_path):
    command = ["run", QUICKSTART, *SMALL, f"training.sharded={sharded}", "--workspace", tmp_path]
    status, said = torchrun(*command, nodes=ONE_NODE if nodes == 1 else two_nodes())
    assert status == 0, said
    alone, shared = tables(finished[0]), tables(tmp_path)
    by = ["condition", "round", "step"]
    ours, theirs = (each["updates"].sort(by) for each in (shared, alone))
    assert ours.select(*by, "tokens", "accuracy").equals(theirs.select(*by, "tokens", "accuracy"))
    for name in ("loss", "grad_norm", "entropy", "learning_rate"):
        assert ours[name].to_list() == pytest.approx(theirs[name].to_list(), rel=1e-4, abs=1e-6)
    sampled = ["condition", "purpose", "round", "problem_id", "sample_index", "response_ids"]
    ours, theirs = (each["rollouts"].select(sampled).sort(sampled[:-1]) for each in (shared, alone))
    assert ours.equals(theirs)


@pytest.mark.slow
def test_torchrun_ends_with_the_commands_error(tmp_path):
    status, said = torchrun("run", tmp_path / "none.toml")
    assert status == 1 and "experiment file not found" in said


def test_a_failed_stage_is_rerun_without_redoing_the_others(finished, tmp_path):
    obstacle = tmp_path / "checkpoints" / ID / "step_aligned"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where the stage needs a folder")
    failed = sdcore("run", QUICKSTART, *SMALL, "--workspace", tmp_path, check=False)
    assert failed.returncode != 0 and str(obstacle) in failed.stderr
    store = Store(tmp_path / "sdcore.duckdb")
    before = {name: store.rows(name) for name in TABLES}
    assert set(before["updates"]["condition"]) == {"grpo", "reference"}
    obstacle.unlink()
    run(tmp_path)
    for name, table in TABLES.items():  # the rows that were there still are, times included
        kept = store.rows(name).join(before[name].select(table.key), on=table.key, how="semi")
        assert kept.sort(table.key).equals(before[name].sort(table.key)), name
    assert_same(tmp_path, finished[0])


@pytest.mark.night
def test_a_loss_that_is_not_finite_names_its_rollout_and_keeps_the_last_checkpoint(
    finished, tmp_path
):
    workspace = shutil.copytree(finished[0], tmp_path / "copy")
    rollouts = tables(workspace)["rollouts"].filter(condition="grpo", purpose="train", round=1)
    rollout = rollouts.row(3, named=True)

    def give(logprobs: list[float]) -> None:
        with duckdb.connect(workspace / "sdcore.duckdb") as connection:
            sql = "UPDATE rollouts SET logprobs = ? WHERE rollout_id = ?"
            connection.execute(sql, [logprobs, rollout["rollout_id"]])

    give([math.nan] * len(rollout["logprobs"]))
    rerun = ["rerun", "quickstart", "--from", "distill", "--condition", "grpo", "--round", 1]
    failed = sdcore(*rerun, "--workspace", workspace, check=False)
    assert failed.returncode == 1
    assert "not finite\n  got: loss nan" in failed.stderr
    assert f"rollouts {rollout['rollout_id']}\n" in failed.stderr
    last = tables(workspace)["policies"].filter(condition="grpo").sort("round").row(-1, named=True)
    assert last["round"] == 1
    assert folder_digest(workspace / last["path"]) == last["sha256"]
    give(rollout["logprobs"])
    sdcore("resume", "quickstart", "--workspace", workspace)
    expected, found = tables(finished[0]), tables(workspace)
    assert all(expected[name].equals(found[name]) for name in TABLES)


def test_a_stage_is_redone_with_what_depends_on_it_and_nothing_else(finished, tmp_path):
    workspace = tmp_path / "copy"
    shutil.copytree(finished[0], workspace)
    store = Store(workspace / "sdcore.duckdb")
    before = {name: store.rows(name) for name in TABLES}
    redone = sdcore(
        *("rerun", "quickstart", "--from", "align", "--condition", "step_aligned"),
        *("--round", 2, "--workspace", workspace),
    )
    assert "step_aligned/seed-3: moved" in redone.stderr
    assert_same(workspace, finished[0])

    def seconds(of: pl.DataFrame) -> dict[tuple[str, int], float]:
        return {(c, r): s for c, r, s in of.select("condition", "round", "seconds").iter_rows()}

    old, new = seconds(before["updates"]), seconds(store.rows("updates"))
    redone_updates = {key for key in old if old[key] != new[key]}
    assert redone_updates == {("step_aligned", 2)}
    counts = {
        name: len(store.query(f"SELECT 1 FROM superseded.{name}"))
        for name in ("critiques", "contexts", "updates", "policies", "scores", "rollouts")
    }
    # Round 2 of 4 questions; the checkpoint after round 3 with 2 splits, 4 x 2 + 6 x 3 rollouts.
    assert counts == {"critiques": 4, "contexts": 4, "updates": 1, "policies": 1, "scores": 2,
                      "rollouts": 26}  # fmt: skip


@pytest.mark.night
def test_where_no_checkpoint_leads_to_a_round_the_ones_before_are_redone(finished, tmp_path):
    workspace = shutil.copytree(finished[0], tmp_path / "copy")
    redone = sdcore(
        *("rerun", "quickstart", "--from", "align", "--condition", "reference"),
        *("--round", 1, "--workspace", workspace),
    )
    assert "rounds 0 to 0 are redone too" in " ".join(redone.stderr.split())  # lines wrap
    assert_same(workspace, finished[0])


@pytest.mark.night
def test_a_stage_is_redone_with_the_servers_of_the_workspace(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")
    workspace = shutil.copytree(finished[0], tmp_path / "copy")
    redone = sdcore(
        *("rerun", "quickstart", "--from", "evaluate", "--condition", "grpo"),
        *("--round", 3, "--workspace", workspace),
    )
    assert "temporary server" not in redone.stderr  # Prefect's, where it knows no other
    with closing(sqlite3.connect(workspace / "prefect" / "prefect.db")) as database:
        states = dict(database.execute("SELECT name, state_type FROM flow_run"))
    assert states == {"quickstart": "COMPLETED"}


def test_rescoring_repairs_grades_and_all_that_was_made_of_them(finished, tmp_path):
    workspace = shutil.copytree(finished[0], tmp_path / "copy")
    right = tables(workspace)["rollouts"].filter(condition="grpo", purpose="test", correct=True)
    with duckdb.connect(workspace / "sdcore.duckdb") as connection:
        lineage = "condition = 'grpo' AND seed = 3"
        wrong = "SET correct = false, grade_reason = 'by another grader'"
        connection.execute(f"UPDATE rollouts {wrong} WHERE {lineage} AND purpose = 'test'")
        connection.execute(f"UPDATE scores SET avg_at_k = 0 WHERE {lineage} AND split = 'test'")
        connection.execute("UPDATE comparisons SET difference = 0 WHERE condition = 'grpo'")
    report = workspace / "reports" / f"{ID}.html"
    report.write_text("of the wrong grades")
    result = json.loads(sdcore("rescore", "quickstart", "--workspace", workspace, "--json").stdout)
    assert result["now_correct"] == len(right) > 0 and result["now_wrong"] == 0
    assert_same(workspace, finished[0])
    assert "of the wrong grades" not in report.read_text("utf-8")
    store = Store(workspace / "sdcore.duckdb")
    before = store.query("FROM superseded.rollouts")
    assert set(before["grade_reason"]) == {"by another grader"}


@pytest.mark.night
def test_two_runs_at_once_in_one_workspace_lose_nothing(tmp_path):
    names = ["a", "b"]
    files = {name: [QUICKSTART, *SMALL, "training.rounds=1", f"name={name}"] for name in names}
    started = [start("run", *files[name], "--workspace", tmp_path) for name in names]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert not any(word in text for text in said for word in ("error", "lock", "busy"))
    store = Store(tmp_path / "sdcore.duckdb")
    ids = [load_experiment(file, overrides).experiment_id for file, *overrides in files.values()]
    about = ["condition", "purpose", "round", "problem_id", "sample_index", "response_ids"]
    sampled = [store.rows("rollouts", experiment_id=each).select(about).sort(about) for each in ids]
    # Base 26; GRPO 16 to train on and 26 to score, the other two 4 and 26 each.
    assert len(sampled[0]) == 26 + 16 + 26 + 2 * (4 + 26)
    assert all(each.equals(sampled[0]) for each in sampled)
    assert [len(store.rows("updates", experiment_id=each)) for each in ids] == [3, 3]
    logged = metrics(tmp_path)
    assert len(logged) == 6  # names repeat: 2 parents, and a child for base and each condition
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert all(client.get_model_version_by_alias(name, "champion") for name in names)
