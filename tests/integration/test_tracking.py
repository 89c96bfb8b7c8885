"""MLflow on a real SQLite file; one database for the module, an experiment for each test."""

import json
import shutil
import threading
import time
from contextlib import closing
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sdcore.config import Experiment
from sdcore.engines import Request, Served
from sdcore.engines.transformers import TransformersEngine
from sdcore.models import policies
from sdcore.models.prompts import prompt_ids, student_messages
from sdcore.store.schema import TABLES
from sdcore.tiny_solver.build import build_tokenizer
from tasks.run.condition_run import StoredPolicy
from tasks.tracking.client import MlflowClient, Tracking
from tasks.tracking.mlflow_file import artifacts_uri, follow_if_moved
from tests.helpers.tiny import save

QUESTIONS = ["12 + 30 - 5 + 11 = ?", "40 - 12 + 33 - 20 = ?"]


def experiment(name, **changes):
    settings = {
        "name": name,
        "description": "tracked",
        "seeds": (0, 1),
        "model": {"name": "builtin:tiny-solver", "device": "cpu"},
        "problems": {"source": "arithmetic"},
        "prompts": {"student": "{{ question }}"},
        "sampling": {"max_new_tokens": 8},
        "training": {"lora": {"rank": 2, "alpha": 4}},
        "conditions": {"grpo": {"objective": "grpo", "learning_rate": 1e-3}},
    }
    return Experiment.model_validate(settings | changes)


def fill(table, known, number):
    """A row: given columns as given, other numbers `number`, other texts 'x'."""
    filler = {pl.String(): "x", pl.Int64(): int(number), pl.Float64(): number, pl.Boolean(): True}
    return {name: known.get(name, filler[dtype]) for name, dtype in TABLES[table].dtypes.items()}


def updates(*steps):
    return TABLES["updates"].frame([fill("updates", {"step": step}, step / 8) for step in steps])


def scores(*rounds, split="validation"):
    rows = [fill("scores", {"round": r, "split": split}, r / 64) for r in rounds]
    return TABLES["scores"].frame(rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def tracking(root):
    return Tracking(root)


@pytest.fixture(scope="module")
def client(tracking):
    return MlflowClient(tracking.uri, registry_uri=tracking.uri)


def runs(client, settings):
    (folder,) = [e.experiment_id for e in client.search_experiments() if e.name == settings.name]
    return {run.info.run_name: run for run in client.search_runs([folder])}


def history(client, run, key):
    points = client.get_metric_history(run.info.run_id, key)
    return [(point.step, point.value) for point in points]


def test_the_parent_holds_parameters_config_and_versions(tracking, client):
    settings = experiment("parent")
    run_id = tracking.start(settings, "0.1+abc", {"torch": "2.13.0"})
    assert tracking.start(settings, "0.1+abc", {"torch": "2.13.0"}) == run_id
    run = runs(client, settings)[settings.experiment_id]
    assert run.info.run_id == run_id and run.info.status == "RUNNING"
    assert run.data.params["training.rounds"] == "60"
    assert run.data.params["conditions.grpo.learning_rate"] == "0.001"
    assert run.data.tags["library.torch"] == "2.13.0"
    path = client.download_artifacts(run_id, "experiment.json")
    with open(path, "rb") as file:
        assert Experiment.model_validate_json(file.read()) == settings


def test_problems_are_datasets_of_the_parent(tracking, client):
    settings = experiment("datasets")
    splits = ["train", "train", "test"]
    rows = [
        fill("problems", {"problem_id": str(position), "split": split}, position)
        for position, split in enumerate(splits)
    ]
    for _ in range(2):
        tracking.log_problems(settings, TABLES["problems"].frame(rows))
    inputs = runs(client, settings)[settings.experiment_id].inputs.dataset_inputs
    found = {each.tags[0].value: json.loads(each.dataset.profile)["num_rows"] for each in inputs}
    assert found == {"train": 2, "test": 1} and len(inputs) == 2
    assert {each.dataset.name for each in inputs} == {"datasets-train", "datasets-test"}


def monitors():
    return {t for t in threading.enumerate() if t.name == "SystemMetricsMonitor"}


def test_the_load_of_the_machine_is_logged_while_a_run_lasts(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    settings, watched, before = experiment("load"), Tracking(tmp_path), monitors()
    run_id = watched.start(settings, "0.1", {})
    deadline = time.monotonic() + 60
    load = {}
    while not load and time.monotonic() < deadline:
        logged = MlflowClient(watched.uri).get_run(run_id).data.metrics
        load = {name: value for name, value in logged.items() if name.startswith("system/cpu")}
    watched.finish(settings)
    assert 0 <= load["system/cpu_utilization_percentage"] <= 100
    assert monitors() == before


def test_each_trial_of_a_sweep_is_a_run_with_its_parameters(tracking, client):
    lists = {"grpo": {"objective": "grpo", "learning_rate": [1e-3, 2e-3]}}
    settings = experiment("sweep", conditions=lists)
    names = list(settings.trials)
    rows = [
        fill("trials", {"condition": "grpo", "trial": name, "chosen": name == names[1]}, 1.0)
        for name in names
    ]
    for _ in range(2):
        tracking.log_trials(settings, TABLES["trials"].frame(rows))
    found = runs(client, settings)
    assert set(found) == {settings.experiment_id} | {
        f"{name}/seed-{seed}" for name in names for seed in (0, 1)
    }
    chosen = found["grpo-learning_rate-0.002/seed-1"].data
    assert chosen.params["learning_rate"] == "0.002"
    assert chosen.tags["sdcore.family"] == "grpo" and chosen.tags["sdcore.chosen"] == "true"
    other = found["grpo-learning_rate-0.001/seed-0"].data
    assert other.params["learning_rate"] == "0.001" and other.tags["sdcore.chosen"] == "false"


def test_metrics_are_the_numbers_of_the_tables(tracking, client):
    settings = experiment("numbers")
    test = scores(0, 20, split="test")
    tracking.log_checkpoint(settings, "grpo", 1, updates(1, 2), pl.concat([scores(0, 20), test]))
    found = runs(client, settings)
    run = found["grpo/seed-1"]
    assert run.data.tags["mlflow.parentRunId"] == found[settings.experiment_id].info.run_id
    assert run.data.params["objective"] == "grpo" and run.data.params["seed"] == "1"
    assert run.data.params["settings.clip_low"] == "0.2"
    assert history(client, run, "train/loss") == [(1, 1 / 8), (2, 2 / 8)]
    assert history(client, run, "validation/avg_at_k") == [(0, 0), (20, 20 / 64)]
    assert history(client, run, "test/pass_at_k_high") == [(0, 0), (20, 20 / 64)]


def test_another_process_logs_only_what_is_missing(root, tracking, client):
    settings = experiment("again")
    tracking.log_checkpoint(settings, "grpo", 0, updates(1, 2), scores(2))
    again = Tracking(root)
    again.log_checkpoint(settings, "grpo", 0, updates(1, 2, 3), scores(2, 3))
    again.log_checkpoint(settings, "grpo", 0, updates(1, 2, 3), scores(2, 3))
    found = runs(client, settings)
    assert sorted(found) == sorted([settings.experiment_id, "grpo/seed-0"])
    for key in found["grpo/seed-0"].data.metrics:
        steps = [step for step, _ in history(client, found["grpo/seed-0"], key)]
        assert steps == ([1, 2, 3] if key.startswith("train/") else [2, 3]), key


def test_more_points_than_one_call_takes_are_all_logged(tracking, client):
    settings = experiment("many")
    tracking.log_checkpoint(settings, "grpo", 0, updates(*range(1, 101)), scores())
    run = runs(client, settings)["grpo/seed-0"]
    assert [step for step, _ in history(client, run, "train/seconds")] == list(range(1, 101))


def test_the_base_has_a_run_of_its_own(tracking, client):
    settings = experiment("untrained")
    tracking.log_checkpoint(settings, "base", 0, updates(), scores(0))
    assert history(client, runs(client, settings)["base/seed-0"], "validation/avg_at_k") == [(0, 0)]


def test_finish_closes_all_runs_and_start_opens_them_again(tracking, client):
    settings = experiment("finished")
    tracking.start(settings, "0.1", {})
    tracking.log_checkpoint(settings, "grpo", 0, updates(1), scores())
    tracking.finish(settings)
    assert {run.info.status for run in runs(client, settings).values()} == {"FINISHED"}
    tracking.start(settings, "0.1", {})
    assert {run.info.status for run in runs(client, settings).values()} == {"RUNNING"}


def test_a_run_that_another_process_has_forgotten_is_logged_again(root, tracking, client):
    settings = experiment("forgotten")
    tracking.log_checkpoint(settings, "grpo", 0, updates(1), scores())
    with closing(Tracking(root)) as other:
        other.forget(settings, "grpo", 0)
    tracking.log_checkpoint(settings, "grpo", 0, updates(1, 2), scores())
    run = runs(client, settings)["grpo/seed-0"]
    assert history(client, run, "train/loss") == [(1, 1 / 8), (2, 2 / 8)]


def test_files_of_a_rerun_replace_those_before(tracking, client):
    settings = experiment("files")
    for number in (1, 2):
        tracking.log_table(settings, pl.DataFrame({"a": [number]}), "comparison.csv")
        tracking.log_text(settings, f"<p>{number}", "report.html")
    run = runs(client, settings)[settings.experiment_id]
    with open(client.download_artifacts(run.info.run_id, "comparison.csv")) as file:
        assert file.read() == "a\n2\n"
    assert sorted(f.path for f in client.list_artifacts(run.info.run_id)) == [
        "comparison.csv",
        "report.html",
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An experiment on a small random model, and an adapter that changes what the model says."""
    base = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, initializer_range=0.5, **shape, **ends
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = experiment("policy", model={"name": str(base), "device": "cpu"})
    model = policies.load_policy(base, settings.model)
    adapted = policies.attach_lora(model, settings.training.lora, seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    folder = tmp_path_factory.mktemp("checkpoint") / "round-0020"
    save(adapted, folder)
    return settings, adapted, folder


DAY = date(2031, 3, 9)


def policy_row(condition="grpo", policy_id="p1"):
    known = {"condition": condition, "seed": 0, "policy_id": policy_id}
    return StoredPolicy(**fill("policies", known, 20.0))


def expected_answers(settings, adapted):
    base = Path(settings.model.name)
    tokenizer = policies.load_tokenizer(base)
    engine = TransformersEngine(
        policies.load_policy(base, settings.model),
        end_ids=policies.end_ids(base),
    )
    engine.load(Served("adapted", None, base, live=adapted))
    prompts = [prompt_ids(tokenizer, student_messages(settings.prompts, q)) for q in QUESTIONS]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    completions = engine.generate(requests, settings.sampling)
    return tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)


def plain_answers(settings):
    model = policies.load_policy(Path(settings.model.name), settings.model)
    return expected_answers(settings, model)


def champion_answers(tracking, monkeypatch):
    import mlflow  # only now: tasks.tracking.client switches telemetry off first

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    return mlflow.pyfunc.load_model("models:/policy@champion").predict(QUESTIONS)


def test_a_registered_policy_loads_back_and_answers(tracking, checkpoint, monkeypatch):
    settings, adapted, folder = checkpoint
    tracking.register(settings, policy_row(), folder, ["champion", "champion-grpo"], DAY)
    answers = champion_answers(tracking, monkeypatch)
    assert answers == expected_answers(settings, adapted)
    assert answers != plain_answers(settings)


def test_a_policy_is_registered_once(tracking, client, checkpoint):
    settings, _, folder = checkpoint
    first = tracking.register(settings, policy_row(), folder, ["champion"], DAY)
    assert tracking.register(settings, policy_row(), folder, ["champion"], DAY) == first
    second = tracking.register(settings, policy_row(policy_id="p2"), folder, ["champion"], DAY)
    assert second != first
    named = client.get_model_version_by_alias("policy", "champion")
    assert str(named.version) == second
    assert len(client.search_model_versions("name = 'policy'")) == 2


def test_who_was_promoted_is_known_by_the_run(tracking, checkpoint):
    settings, _, folder = checkpoint
    tracking.register(settings, policy_row(), folder, [], DAY)
    assert not tracking.is_promoted(settings)
    tracking.mark_promoted(settings)
    assert tracking.is_promoted(settings)
    other = experiment("policy", model={"name": settings.model.name}, seeds=(7,))
    assert not tracking.is_promoted(other)


def note_of(uri, settings):
    client = MlflowClient(uri, registry_uri=uri)
    run = runs(client, settings)[settings.experiment_id]
    with open(client.download_artifacts(run.info.run_id, "note.txt")) as file:
        return file.read()


def test_a_moved_workspace_keeps_its_artifacts_at_any_path(tmp_path, checkpoint, monkeypatch):
    settings, adapted, folder = checkpoint
    odd = tmp_path / "be fore?x=1%41#'é"
    with closing(Tracking(odd)) as before:
        before.log_text(settings, "kept", "note.txt")
        before.register(settings, policy_row(), folder, ["champion"], DAY)
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]
    even_odder = odd.rename(tmp_path / "af?ter%3F")
    with closing(Tracking(even_odder)) as after:
        assert note_of(after.uri, settings) == "kept"
        assert after.champion(settings) == "p1"
    moved = even_odder.rename(tmp_path / "it's a folder, é")
    follow_if_moved(moved)  # as whoever opens the tables does: no Tracking is made
    uri = f"sqlite:///{moved}/mlflow.db"
    assert note_of(uri, settings) == "kept"
    answers = champion_answers(SimpleNamespace(uri=uri), monkeypatch)
    assert answers == expected_answers(settings, adapted)


def test_one_workspace_has_one_address_however_it_is_spelled(tmp_path):
    root = tmp_path / "workspace"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    spellings = (root, tmp_path / "link", tmp_path / "link" / ".." / "workspace")
    assert {artifacts_uri(each) for each in spellings} == {artifacts_uri(root)}


@pytest.mark.parametrize("content", [None, b"", b"no database"])
def test_where_mlflow_has_no_tables_nothing_is_corrected(tmp_path, content):
    if content is not None:
        (tmp_path / "mlflow.db").write_bytes(content)
    follow_if_moved(tmp_path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [content] * (content is not None)


def test_nothing_is_printed_and_the_one_file_is_complete(tmp_path, capfd):
    settings = experiment("quiet")
    quiet = Tracking(tmp_path / "new")
    quiet.start(settings, "0.1", {})
    quiet.finish(settings)
    assert capfd.readouterr() == ("", "")
    copy = shutil.copy(tmp_path / "new" / "mlflow.db", tmp_path / "copy.db")
    client = MlflowClient(f"sqlite:///{copy}")
    assert runs(client, settings)[settings.experiment_id].info.status == "FINISHED"
