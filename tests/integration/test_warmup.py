"""The warm-up: its traces, the model folder it writes, and the stage in the DAG."""

import json

import polars as pl
import pytest
import torch
from mlflow import MlflowClient, pyfunc

from sdcore.config import ModelConfig, ProblemsConfig, load_experiment
from sdcore.errors import DataError
from sdcore.models import adapters, hub, policies, weight_files
from sdcore.problems.arithmetic import parse_question, read_step, verify_steps
from sdcore.problems.splits import load_problems
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace
from sdcore.training import warmup
from tasks.prepare import prepare
from tasks.run.condition_run import base_run
from tasks.run.session import Session
from tasks.warmup import warm_up
from tests.helpers.tiny import LORA, examples, flip
from tests.integration.test_flows import metrics, sdcore, tables

TINY = ModelConfig(name="builtin:tiny-solver", device="cpu")
ARITHMETIC = ProblemsConfig(source="arithmetic", arithmetic={"operands": 3, "largest": 30})


def train_rows(*solutions):
    rows = [
        {"question": f"question {place}", "solution": solution, "reference": "7", "position": place}
        for place, solution in enumerate(solutions)
    ]
    return pl.DataFrame(rows, schema_overrides={"solution": pl.String})


def test_arithmetic_traces_are_right_varied_and_on_problems_of_no_split():
    made = warmup.traces(ARITHMETIC, pl.DataFrame(), 64)
    assert made == warmup.traces(ARITHMETIC, pl.DataFrame(), 64) and len(made) == 64
    styles = set()
    for question, text, _ in made:
        problem, trace = parse_question(question), parse_trace(text)
        steps = [step.text for step in trace.steps]
        assert trace.well_formed and trace.answer == str(problem.answer)
        assert verify_steps(problem, steps) is None and not problem.held_out
        styles |= {read_step(step).style for step in steps}
    assert len(styles) == 4
    split = load_problems(ARITHMETIC).problems
    assert not {solved.question for solved in made} & set(split["question"])


def test_other_sources_give_their_solutions_cut_by_line():
    problems = ProblemsConfig(source="jsonl", path="some.jsonl")
    rows = train_rows("3 + 3 = 6\n\n 6 + 1 = 7 ", None, "a </step_1> b", "seven")
    assert warmup.traces(problems, rows, 9) == [
        (
            "question 0",
            "<step_1>3 + 3 = 6</step_1><step_2>6 + 1 = 7</step_2><answer>7</answer>",
            "3 + 3 = 6\n\n 6 + 1 = 7 ",
        ),
        ("question 3", "<step_1>seven</step_1><answer>7</answer>", "seven"),
    ]
    assert len(warmup.traces(problems, rows, 1)) == 1
    with pytest.raises(DataError, match="no traces to warm up on"):
        warmup.traces(problems, train_rows(None, " "), 9)


def test_the_base_folder_is_a_model_with_the_adapter_merged(tmp_path):
    named = hub.resolve(TINY.name)
    adapted = policies.attach_lora(policies.load_policy(named, TINY), LORA, seed=0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.02)
    warmup.save_base(adapted, adapters.merged_weights(adapted), named, tmp_path / "base")
    loaded = policies.load_policy(tmp_path / "base", TINY)
    ids_NL = torch.tensor([examples(1)[0].response_ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids_NL).logits, adapted(ids_NL).logits)
        raw = policies.load_policy(named, TINY)
        assert not torch.allclose(raw(ids_NL).logits, loaded(ids_NL).logits)
    theirs = policies.load_tokenizer(named).encode("Compute 47+23-31.")
    assert policies.load_tokenizer(tmp_path / "base").encode("Compute 47+23-31.") == theirs
    assert policies.end_ids(tmp_path / "base") == policies.end_ids(named)


EXPERIMENT = """
name = "warmed"
[model]
name = "builtin:tiny-solver"
[problems]
source = "arithmetic"
train = 4
validation = 4
test = 4
[sampling]
max_new_tokens = 96
[warmup]
traces = 8
steps = 3
batch_size = 4
learning_rate = 1e-2
[training]
rounds = 2
questions_per_round = 2
max_first_token_kl = 9.0  # three steps of warm-up teach no teacher how to begin
[training.lora]
rank = 4
alpha = 8
[evaluation]
samples = 2
validation_samples = 2
resamples = 200
[conditions.reference]
objective = "distill"
context = "reference"
learning_rate = 1e-3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "warmed.toml"
    path.write_text(EXPERIMENT)
    return path


def test_a_hinted_warm_up_is_recorded_and_gives_the_same_weights_again(file, tmp_path, capsys):
    """Of 8 traces 4 have a hint and 2 slip; 4 are drawn per step, all 8 in the first two."""
    digests = []
    for name in ("one", "two"):
        with Session(tmp_path / name) as session:
            base = base_run(session, load_experiment(file, ["warmup.hinted=0.5"]))
            prepare.fn(base)
            policy = warm_up.fn(base)
            updates = session.store.rows("updates").sort("step")
        assert policy.hinted == 0.5
        assert updates["accuracy"][:2].mean() == updates["mean_reward"][:2].mean() == 0.75
        digests.append(policy.sha256)
    assert digests[0] == digests[1]
    with Session(tmp_path / "two") as session:  # and again where the weights were lost
        base = base_run(session, base.experiment)
        flip(base.checkpoint(0) / weight_files.FULL_FILE)
        assert (
            warm_up.fn(base).sha256 == weight_files.folder_digest(base.checkpoint(0)) == digests[0]
        )
        assert len(session.store.rows("updates")) == len(updates)
    assert "retrained to the same weights" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize(("rate", "noted"), [(1e-6, True), (0.1, False)])
def test_a_base_that_bfloat16_rounds_away_is_noted(tmp_path, capsys, adapted, rate, noted):
    lora = "[training.lora]\nrank = 4\nalpha = 8\n"
    (file := tmp_path / "warmed.toml").write_text(EXPERIMENT.replace(lora, lora * adapted))
    changes = ["model.dtype=bfloat16", f"warmup.learning_rate={rate}", "warmup.steps=1"]
    with Session(tmp_path) as session:
        base = base_run(session, load_experiment(file, changes))
        prepare.fn(base)
        warm_up.fn(base)
    said = " ".join(capsys.readouterr().err.split())
    assert ("rounded to bfloat16, the base keeps" in said) == noted


def run(file, workspace, check=True):
    return sdcore("run", file, "--workspace", workspace, "--json", check=check)


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    workspace = tmp_path_factory.mktemp("finished")
    return workspace, json.loads(run(file, workspace).stdout)


def test_the_warmed_up_policy_is_recorded_and_is_the_base_of_all(finished):
    workspace, rows = finished[0], tables(finished[0])
    raw, base = rows["policies"].filter(condition="base").sort("round").to_dicts()
    assert (raw["round"], raw["step"], raw["path"]) == (-1, -3, "builtin:tiny-solver")
    assert (base["round"], base["step"], base["parent_id"]) == (0, 0, raw["policy_id"])
    assert base["sha256"] == weight_files.folder_digest(workspace / base["path"]) != raw["sha256"]
    assert (raw["hinted"], base["hinted"]) == (None, 0.0)
    trained = rows["policies"].filter(condition="reference").sort("round")
    assert trained["hinted"].null_count() == len(trained)
    assert trained["parent_id"][0] == base["policy_id"]
    updates = rows["updates"].filter(condition="base").sort("step")
    assert updates["step"].to_list() == [-2, -1, 0] and set(updates["round"]) == {-1}
    assert updates["loss"][-1] < updates["loss"][0]
    assert set(updates["accuracy"]) == {1.0}
    assert rows["updates"].filter(condition="reference").sort("step")["step"].to_list() == [1, 2]
    sampled = set(rows["rollouts"].filter(pl.col("round") == 0)["policy_id"])
    assert sampled == {base["policy_id"]}  # the base line of the table, and the first round


def test_engine_and_trainer_hold_the_warmed_up_weights(finished):
    updates = tables(finished[0])["updates"].filter(condition="reference")
    assert updates["logprob_drift"].max() < 1e-4


@pytest.mark.night
def test_the_same_command_again_changes_nothing(finished, file):
    workspace, printed = finished
    before, logged = tables(workspace), metrics(workspace)
    again = json.loads(run(file, workspace).stdout)
    assert again | {"seconds": None} == printed | {"seconds": None}
    after = tables(workspace)
    assert all(before[name].equals(after[name]) for name in TABLES)
    assert metrics(workspace) == logged


@pytest.mark.night
def test_a_warm_up_that_failed_is_taken_up_again_and_ends_the_same(finished, file, tmp_path):
    experiment_id = tables(finished[0])["experiments"]["experiment_id"][0]
    obstacle = tmp_path / "checkpoints" / experiment_id / "base"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where the stage needs a folder")
    failed = run(file, tmp_path, check=False)
    assert failed.returncode != 0 and str(obstacle) in failed.stderr
    assert not len(Store(tmp_path / "sdcore.duckdb").rows("updates"))
    obstacle.unlink()
    run(file, tmp_path)
    expected, found = tables(finished[0]), tables(tmp_path)
    assert all(expected[name].equals(found[name]) for name in TABLES)


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, on importing pyfunc
def test_the_champion_brings_its_warmed_up_base(finished):
    uri = f"sqlite:///{finished[0]}/mlflow.db"
    version = MlflowClient(uri, registry_uri=uri).get_model_version_by_alias("warmed", "champion")
    question = tables(finished[0])["problems"]["question"][0]
    assert "<step_1>" in pyfunc.load_model(version.source).predict([question])[0]
