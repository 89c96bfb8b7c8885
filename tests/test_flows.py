"""The DAG end to end with real parts: model, DuckDB file, Prefect server, MLflow store."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import pytest
from mlflow import MlflowClient, pyfunc

from flows import services
from sdcore.arithmetic import generate_problems, reference_solution
from sdcore.config import load_experiment
from sdcore.loopback import answers, free_port
from sdcore.policies import weights_digest
from sdcore.schema import TABLES
from sdcore.store import Store
from tests.test_config import QUICKSTART

SMALL = [
    "seeds=[3]", "problems.train=8", "problems.validation=4", "problems.test=6",
    "training.rounds=3", "training.questions_per_round=4", "evaluation.every=2",
    "evaluation.samples=3", "evaluation.validation_samples=2", "evaluation.resamples=200",
    "sampling.batch_size=8", "conditions.grpo.group_size=4",
]  # fmt: skip
TIMES = {"seconds", "created_at", "code_version"}


def sdcore(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("sdcore"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def run(workspace: Path) -> subprocess.CompletedProcess[str]:
    return sdcore("run", QUICKSTART, *SMALL, "--workspace", workspace, "--json")


def tables(workspace: Path) -> dict[str, pl.DataFrame]:
    """Every table, sorted, without the columns that tell the time."""
    store = Store(workspace / "sdcore.duckdb")
    return {
        name: store.rows(name).drop(TIMES & set(table.dtypes)).sort(table.key)
        for name, table in TABLES.items()
    }


def metrics(workspace: Path) -> dict[str, dict[str, float]]:
    """Last value of every MLflow metric by run name, times and the machine's load aside."""
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {
        r.info.run_name: {
            name: value
            for name, value in r.data.metrics.items()
            if not name.endswith("seconds") and not name.startswith("system/")
        }
        for r in runs
    }


@pytest.fixture(scope="module", autouse=True)
def prefect(tmp_path_factory):
    """A standing server for the runs of this file: each would take as long to start its own."""
    address = f"http://127.0.0.1:{free_port()}"
    home = {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}
    with (
        subprocess.Popen(
            services.prefect_command(address),
            env=os.environ | services.QUIET | home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert answers(f"{address}/api/health", server, services.START_SECONDS)
        patch.setenv("PREFECT_API_URL", f"{address}/api")
        yield
        server.terminate()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("finished")
    return workspace, json.loads(run(workspace).stdout)


def test_a_run_fills_every_table_with_what_was_planned(finished):
    workspace, _ = finished
    rows = tables(workspace)
    empty = {name for name, frame in rows.items() if not len(frame)}
    # arithmetic has no bad rows; there is no band, and nobody tried the critic
    assert empty == {"rejected_problems", "difficulties", "critic_trials"}
    counts = rows["rollouts"].group_by("condition", "purpose").len().sort("condition", "purpose")
    # validation: 4 problems x 2, test: 6 x 3; checkpoints after rounds 2 and 3, for GRPO also
    # after round 3 // 4 -> 1 (as many rollouts as the cheapest condition); training: 3 rounds x 4
    # questions, x 4 for GRPO.
    assert counts.rows() == [
        ("base", "test", 18), ("base", "validation", 8),
        ("grpo", "test", 54), ("grpo", "train", 48), ("grpo", "validation", 24),
        ("reference", "test", 36), ("reference", "train", 12), ("reference", "validation", 16),
        ("step_aligned", "test", 36), ("step_aligned", "train", 12),
        ("step_aligned", "validation", 16),
    ]  # fmt: skip
    assert len(rows["updates"]) == 9
    assert set(rows["token_signals"]["round"]) == {0, 2}


def test_student_and_teacher_scored_the_sampled_tokens(finished):
    rows = tables(finished[0])
    signals = rows["token_signals"].filter(pl.col("condition") != "grpo")
    rollouts = rows["rollouts"].select("rollout_id", "response_ids", "logprobs")
    joined = signals.join(rollouts, on="rollout_id").with_columns(
        sampled=pl.col("response_ids").list.get(pl.col("position")),
        engine=pl.col("logprobs").list.get(pl.col("position")),
    )
    assert (joined["token_id"] == joined["sampled"]).all()
    assert (joined["student_logprob"] - joined["engine"]).abs().max() < 1e-3
    gap = joined["teacher_logprob"] - joined["student_logprob"] - joined["advantage"]
    assert gap.abs().max() < 1e-5
    assert (joined["kl"] > -1e-6).all()


def test_step_aligned_contexts_keep_the_correct_steps_verbatim(finished):
    rows = tables(finished[0])
    critiques = rows["critiques"].filter(pl.col("valid"), condition="step_aligned", verdict="D")
    assert len(critiques)
    for row in critiques.join(rows["rollouts"], on="rollout_id").iter_rows(named=True):
        prefix = row["text"].split(f"<step_{row['first_wrong_step']}>")[0]
        assert row["corrected"].startswith(prefix)


def test_the_printed_summary_has_the_papers_table_and_intervals(finished):
    summary = finished[1]["summary"]
    assert [(row["condition"], row["checkpoint"]) for row in summary] == [
        ("base", "untrained"),
        ("grpo", "validation"), ("grpo", "optimistic"),
        ("reference", "validation"), ("reference", "optimistic"),
        ("step_aligned", "validation"), ("step_aligned", "optimistic"),
    ]  # fmt: skip
    for row in summary:
        for metric in ("avg_at_k", "maj_at_k", "pass_at_k"):
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
    assert finished[1]["signals"] and finished[1]["comparisons"]


def test_the_same_command_again_changes_nothing(finished):
    workspace, printed = finished
    before, logged = tables(workspace), metrics(workspace)
    again = run(workspace)
    assert json.loads(again.stdout) == printed and "leaked" not in again.stderr
    after = tables(workspace)
    assert all(before[name].equals(after[name]) for name in TABLES)
    assert metrics(workspace) == logged


def test_a_fresh_workspace_gives_the_same_tables(finished, tmp_path):
    run(tmp_path)
    before, after = tables(finished[0]), tables(tmp_path)
    assert all(before[name].equals(after[name]) for name in TABLES)


@pytest.mark.parametrize("rollouts", [40, 110, 200])
def test_killed_and_started_again_it_ends_as_if_never_interrupted(finished, tmp_path, rollouts):
    command = [Path(sys.executable).with_name("sdcore"), "run", QUICKSTART, *SMALL]
    process = subprocess.Popen(
        [*map(str, command), "--workspace", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    store = Store(tmp_path / "sdcore.duckdb")
    while len(store.query("SELECT 1 FROM rollouts")) < rollouts:
        with pytest.raises(subprocess.TimeoutExpired):  # or it finished before it could be killed
            process.wait(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(tmp_path)
    expected, found = tables(finished[0]), tables(tmp_path)
    assert all(expected[name].equals(found[name]) for name in TABLES)
    assert metrics(tmp_path) == metrics(finished[0])


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = ["--nproc-per-node=2", "--no-python", Path(sys.executable).with_name("sdcore")]
    threads = os.environ | {"OMP_NUM_THREADS": "2"}  # torchrun's own choice is 1
    return subprocess.run(
        [*launcher, *program, *map(str, arguments)], env=threads, capture_output=True, text=True
    )


@pytest.mark.slow
def test_sharded_over_two_processes_a_run_gives_the_numbers_of_one(finished, tmp_path):
    command = ["run", QUICKSTART, *SMALL, "training.sharded=true", "--workspace", tmp_path]
    together = torchrun(*command)
    assert together.returncode == 0, together.stderr
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
    failed = torchrun("run", tmp_path / "none.toml")
    assert failed.returncode == 1 and "experiment file not found" in failed.stderr


def test_a_failed_stage_is_rerun_without_redoing_the_others(finished, tmp_path):
    experiment_id = load_experiment(QUICKSTART, SMALL).experiment_id
    obstacle = tmp_path / "checkpoints" / experiment_id / "step_aligned"
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
    expected, found = tables(finished[0]), tables(tmp_path)
    assert all(expected[name].equals(found[name]) for name in TABLES)


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
    assert weights_digest(workspace / last["path"]) == last["sha256"]
    give(rollout["logprobs"])
    sdcore("resume", "quickstart", "--workspace", workspace)
    expected, found = tables(finished[0]), tables(workspace)
    assert all(expected[name].equals(found[name]) for name in TABLES)


def test_a_stage_is_redone_with_what_depends_on_it_and_nothing_else(finished, tmp_path):
    workspace = tmp_path / "copy"
    shutil.copytree(finished[0], workspace)
    store = Store(workspace / "sdcore.duckdb")
    before = {name: store.rows(name) for name in TABLES}
    logged = metrics(workspace)
    redone = sdcore(
        *("rerun", "quickstart", "--from", "align", "--condition", "step_aligned"),
        *("--round", 1, "--workspace", workspace),
    )
    assert "step_aligned/seed-3: set aside" in redone.stderr
    expected, found = tables(finished[0]), tables(workspace)
    assert all(expected[name].equals(found[name]) for name in TABLES)
    assert metrics(workspace) == logged

    def seconds(of: pl.DataFrame) -> dict[tuple[str, int], float]:
        return {(c, r): s for c, r, s in of.select("condition", "round", "seconds").iter_rows()}

    old, new = seconds(before["updates"]), seconds(store.rows("updates"))
    redone_updates = {key for key in old if old[key] != new[key]}
    assert redone_updates == {("step_aligned", 1), ("step_aligned", 2)}
    counts = {
        name: len(store.query(f"SELECT 1 FROM superseded.{name}"))
        for name in ("critiques", "contexts", "updates", "policies", "scores", "rollouts")
    }
    # Rounds 1 and 2 of 4 questions; checkpoints after rounds 2 and 3; 2 splits; of the rollouts
    # those of round 2, and 4 x 2 + 6 x 3 at each checkpoint.
    assert counts == {"critiques": 8, "contexts": 8, "updates": 2, "policies": 2, "scores": 4,
                      "rollouts": 4 + 2 * 26}  # fmt: skip


def test_what_cannot_be_redone_is_said(finished):
    where = ["--workspace", finished[0]]
    wrong = [("none", 0, "no such condition"), ("grpo", 3, "0 to 2"), ("base", 0, "evaluate")]
    for condition, round_, message in wrong:
        result = sdcore(
            *("rerun", "quickstart", "--from", "sample", "--condition", condition),
            *("--round", round_, *where),
            check=False,
        )
        assert result.returncode == 1 and message in result.stderr


def test_a_changed_experiment_is_refused_and_the_change_named(finished):
    changed = ["conditions.grpo.learning_rate=1e-5", "--workspace", finished[0]]
    result = sdcore("run", QUICKSTART, *SMALL, *changed, check=False)
    assert result.returncode == 1
    assert "conditions.grpo.learning_rate was 0.0004, is 1e-05" in result.stderr
    assert "--new" in result.stderr


def test_ctrl_c_saves_what_is_done_and_resume_goes_on(finished, tmp_path):
    command = [Path(sys.executable).with_name("sdcore"), "run", QUICKSTART, *SMALL]
    process = subprocess.Popen(
        [*map(str, command), "--workspace", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    store = Store(tmp_path / "sdcore.duckdb")
    while len(store.query("SELECT 1 FROM rollouts")) < 60:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130
    assert "stopped on request" in printed and "Traceback" not in printed
    sdcore("resume", "quickstart", "--workspace", tmp_path)
    expected, found = tables(finished[0]), tables(tmp_path)
    assert all(expected[name].equals(found[name]) for name in TABLES)


def test_mlflow_holds_the_same_numbers_as_the_tables(finished):
    rows = tables(finished[0])["scores"].filter(condition="grpo", split="test").sort("round")
    logged = metrics(finished[0])["grpo/seed-3"]
    assert logged["test/avg_at_k"] == rows["avg_at_k"][-1]
    assert logged["test/pass_at_k"] == rows["pass_at_k"][-1]


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, on importing pyfunc
def test_the_champion_loads_back_and_answers(finished):
    workspace, _ = finished
    uri = f"sqlite:///{workspace}/mlflow.db"
    version = MlflowClient(uri, registry_uri=uri).get_model_version_by_alias(
        "quickstart", "champion"
    )
    model = pyfunc.load_model(f"{version.source}")
    question = tables(workspace)["problems"]["question"][0]
    assert "<step_1>" in model.predict([question])[0]


def champion(workspace: Path) -> str:
    """The condition of the policy that MLflow calls champion."""
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    return client.get_model_version_by_alias("quickstart", "champion").tags["condition"]


def test_a_promoted_policy_stays_champion_when_the_run_is_compared_again(finished, tmp_path):
    workspace = shutil.copytree(finished[0], tmp_path / "copy")
    others = {"grpo", "reference", "step_aligned"} - {champion(workspace)}
    condition = min(others)
    sdcore("promote", "quickstart", f"{condition}/3", "--workspace", workspace)
    assert champion(workspace) == condition
    run(workspace)
    assert champion(workspace) == condition


def test_promoting_what_is_not_there_names_what_is(finished):
    result = sdcore("promote", "quickstart", "grpo/4", "--workspace", finished[0], check=False)
    assert result.returncode == 1 and "step_aligned/3" in result.stderr


def test_query_answers_in_every_format(finished, tmp_path):
    where = ["--workspace", finished[0]]
    sql = "SELECT split, count(*) AS n FROM problems GROUP BY split ORDER BY split"
    expected = [
        {"split": "test", "n": 6},
        {"split": "train", "n": 8},
        {"split": "validation", "n": 4},
    ]
    assert json.loads(sdcore("query", sql, *where, "--format", "json").stdout) == expected
    assert sdcore("query", sql, *where, "--format", "csv").stdout.splitlines()[1] == "test,6"
    assert "validation" in sdcore("query", sql, *where).stdout
    ids = sdcore("query", "SELECT prompt_ids FROM rollouts", *where, "--format", "csv").stdout
    assert json.loads(json.loads(ids.splitlines()[1]))


def test_the_oracle_is_measured_on_arithmetic_and_makes_no_mistake(tmp_path):
    command = ["critic-eval", QUICKSTART, "--solutions", 20, "--workspace", tmp_path, "--json"]
    scores = json.loads(sdcore(*command).stdout)
    assert scores["critic"] == "oracle" and scores["wrong_solutions"] == 10
    assert (scores["f1"], scores["false_alarms"], scores["validity"]) == (1, 0, 1)
    assert len(Store(tmp_path / "sdcore.duckdb").rows("critic_trials")) == 20


def test_list_and_report_find_the_run_by_its_name(finished):
    where = ["--workspace", finished[0]]
    (listed,) = json.loads(sdcore("list", *where, "--json").stdout)
    assert listed["compared"] and listed["steps"] == 3
    result = sdcore("report", "quickstart", *where)
    page = finished[0] / "reports" / f"{listed['experiment_id']}.html"
    assert str(page.name) in result.stderr.replace("\n", "") and page.stat().st_size > 10_000


def test_a_file_of_ones_own_is_cleaned_and_filtered_before_training(tmp_path):
    problems = generate_problems(150, seed=5, holdout=True)
    rows = [{"q": e.question, "s": reference_solution(e), "a": e.answer} for e in problems]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(["{nonsense", *map(json.dumps, rows)]))
    own = [
        "problems.source=jsonl", f"problems.path={path}", "problems.question=q",
        "problems.solution=s", "problems.answer=a", "problems.band.samples=4",
        "problems.band.accuracy_below=0.8", "problems.band.format_rate=0.5", "training.rounds=1",
        "conditions.step_aligned.context=reference",
    ]  # fmt: skip
    sdcore("run", QUICKSTART, *SMALL, *own, "--workspace", tmp_path)
    found = tables(tmp_path)
    assert found["rejected_problems"].select("row", "kind").rows() == [(1, "bad")]
    hard = set(found["difficulties"].filter(pl.col("in_band"))["problem_id"])
    counts = found["rollouts"].group_by("purpose").agg(pl.col("problem_id").n_unique())
    used = found["rollouts"].filter(pl.col("purpose") != "filter")
    assert set(used["problem_id"]) <= hard
    assert dict(counts.rows()) == {
        "filter": len(found["difficulties"]), "train": 4, "validation": 4, "test": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml"], "experiment file not found"),
        (["run", QUICKSTART, "training.round=1"], "training.round"),
        (["query", "SELECT 1"], "no tables here"),
        (["report", "quickstart"], "no tables here"),
    ],
)
def test_a_mistake_is_a_message_not_a_traceback(arguments, message, tmp_path):
    result = sdcore(*arguments, "--workspace", tmp_path, check=False)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr


def test_dry_run_prints_the_resolved_settings_and_writes_nothing(tmp_path):
    workspace = tmp_path / "new"
    result = sdcore("run", QUICKSTART, *SMALL, "--workspace", workspace, "--dry-run")
    assert json.loads(result.stdout)["training"]["rounds"] == 3
    assert not workspace.exists()
