"""Every shipped experiment file runs through all its stages: tiny models, few rows, a fake critic.

What a file says is overridden only in size, in where things are, and in what a random model cannot
do (keep the step format, for instance).
"""

import json
import tomllib

import polars as pl
import pytest

from sdcore.config import DistillConfig, load_experiment
from sdcore.critics.llm import LIVENESS_PROMPT
from sdcore.problems.arithmetic import generate_problems, parse_question, reference_solution
from tests.helpers import critic_server, models
from tests.helpers.paths import EXPERIMENTS
from tests.helpers.runs import sdcore, tables

pytestmark = pytest.mark.usefixtures("prefect")
SAME = {"paper-1gpu": "paper"}  # files that differ in their use of memory only
LONG = {"predict"}  # in test_predict, at night
ALIKE = {"quickstart", "tokens"}  # with what other tests run
FILES = sorted({path.stem for path in EXPERIMENTS.glob("*.toml")} - SAME.keys() - LONG)
TINY = [
    "seeds=[0]", "problems.train=4", "problems.validation=2", "problems.test=2",
    "sampling.max_new_tokens=64", "sampling.batch_size=16",
    "training.rounds=1", "training.questions_per_round=4", "training.warmup_steps=0",
    "evaluation.every=1", "evaluation.samples=2", "evaluation.validation_samples=1",
    "evaluation.resamples=200",
]  # fmt: skip
OWN = {
    "laptop": ["warmup.traces=8", "warmup.steps=2", "warmup.batch_size=4"],
    "paper": [
        "engine.kind=transformers", "problems.band.samples=2", "problems.band.format_rate=0",
    ],
}  # fmt: skip
RANDOM = {"builtin:smollm2": models.smollm2, "Qwen/Qwen3-1.7B": models.qwen3}


def written(experiment, folder):
    """Overrides that name a source of 60 rows with the columns that the file reads."""
    rows = [
        {"q": p.question, "s": reference_solution(p), "a": str(p.answer)}
        for p in generate_problems(60, seed=1, holdout=True)
    ]
    settings = experiment["problems"]
    if settings["source"] == "jsonl":  # GSM8K's form
        lines = [
            json.dumps({"question": r["q"], "answer": f"{r['s']}\n#### {r['a']}"}) for r in rows
        ]
        (folder / "train.jsonl").write_text("\n".join(lines), "utf-8")
        return [f"problems.path={folder / 'train.jsonl'}"]
    if settings["source"] == "dataset":
        columns = [settings[name] for name in ("question", "solution", "answer")]
        frame = pl.DataFrame(
            [(r["q"], f"<think>\nHm.\n</think>\n\n{r['s']}", r["a"]) for r in rows],
            schema=columns,
            orient="row",
        )
        (folder / "rows" / "data").mkdir(parents=True)
        frame.write_parquet(folder / "rows" / "data" / f"{settings['part']}-00000-of-00001.parquet")
        return [f"problems.name={folder / 'rows'}"]
    return []


def answered(body):
    """As the oracle where the critic is asked for a critique, else with a correct solution."""
    text = body["messages"][0]["content"]
    if text == LIVENESS_PROMPT:
        return critic_server.say("A")
    if "\n=== " in text:
        return critic_server.exact(body)
    answer = parse_question(text.splitlines()[-1]).answer
    return critic_server.say(f"<step_1>x</step_1><answer>{answer}</answer>")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.night if name in ALIKE else ()) for name in FILES],
)
def test_a_shipped_experiment_runs_through_all_its_stages(name, tmp_path):
    file = EXPERIMENTS / f"{name}.toml"
    experiment = tomllib.loads(file.read_text("utf-8"))
    model = experiment["model"]["name"]
    overrides = [*TINY, *OWN.get(name, []), *written(experiment, tmp_path)]
    overrides += [
        f"conditions.{condition}.group_size=2"
        for condition, settings in experiment["conditions"].items()
        if settings["objective"] == "grpo"
    ]
    if model in RANDOM:
        overrides.append(f"model.name={RANDOM[model](tmp_path / 'model')}")
    if "lora" in experiment["training"]:
        overrides += ["training.lora.rank=4"]
    with critic_server.serve(answered) as (url, asked):
        if "critic" in experiment:
            overrides.append(f"critic.base_url={url}")
        sdcore("run", file, *overrides, "--workspace", tmp_path / "runs")
    planned, rows = load_experiment(file, overrides), tables(tmp_path / "runs")
    assert bool(asked) == ("critic" in experiment)
    lost = set(rows["trials"].filter(~pl.col("chosen"))["trial"])
    for condition, settings in planned.conditions.items():
        updates = rows["updates"].filter(condition=condition)
        assert updates["round"].to_list() == [0]
        distils = isinstance(settings, DistillConfig)
        assert updates["first_token_kl"].is_null().any() != distils
        contexts = rows["contexts"].filter(condition=condition)
        assert set(contexts["context"]) == ({settings.context} if distils else set())
        scores = rows["scores"].filter(condition=condition)
        splits = {"validation"} if condition in lost else {"validation", "test"}
        assert set(scores["split"]) == splits and set(scores["round"]) == {1}
    assert len(rows["comparisons"]) > 0
    assert (len(rows["difficulties"]) > 0) == (planned.problems.band is not None)
    assert bool((rows["updates"]["round"] < 0).any()) == (planned.warmup is not None)


@pytest.mark.parametrize("name", SAME)
def test_files_that_are_the_same_differ_in_their_use_of_memory_only(name):
    one, other = (
        tomllib.loads((EXPERIMENTS / f"{file}.toml").read_text("utf-8"))
        for file in (name, SAME[name])
    )
    for settings in (one, other):
        del settings["name"], settings["description"], settings["engine"]
        settings["training"].pop("activation_checkpointing", None)
    assert one == other


@pytest.mark.parametrize("name", ["paper", "paper-1gpu"])
def test_the_papers_cache_holds_a_sequence_of_its_context_length(name):
    """vLLM refuses to start otherwise: 4.4 GiB for the 40,960 positions of Qwen3-1.7B."""
    planned = load_experiment(EXPERIMENTS / f"{name}.toml")
    engine = planned.engine
    layers, key_value_heads, head_size, bytes_each = 28, 8, 128, 2
    per_token = 2 * layers * key_value_heads * head_size * bytes_each  # keys and values: 112 KiB
    assert engine.kind == "vllm" and engine.context_length is not None
    assert 40_960 * per_token / 2**30 == pytest.approx(4.375)
    assert engine.context_length * per_token <= engine.cache_gib * 2**30
    prompt = 1024  # tokens; the longest questions have a few hundred
    assert engine.context_length >= planned.sampling.max_new_tokens + prompt
