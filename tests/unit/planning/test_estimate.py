"""Plans beside finished runs, and small ones by hand."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sdcore.config import Experiment, load_experiment
from sdcore.config.shipped import shipped_names
from sdcore.errors import ConfigError
from sdcore.models.folders import at_hand
from sdcore.planning import machines
from sdcore.planning.estimate import Plan, plan
from sdcore.planning.lengths import Lengths, lengths_of
from sdcore.planning.machines import CPU, GIB, Machine, named
from sdcore.planning.shapes import KNOWN, shape_of
from sdcore.planning.work import (
    CRITIC_RATE,
    checkpoint_bytes,
    rollout_bytes,
    step_of,
    written_bytes,
)
from tests.helpers.paths import DATA, EXPERIMENTS

QWEN = KNOWN["Qwen/Qwen3-1.7B"]
LENGTHS = Lengths(prompt=100, shown=1100, response=1000, longest=2048, basis="given")
SOLVER = {"name": "Qwen/Qwen3-1.7B", "dtype": "bfloat16"}
SOURCE = {"source": "dataset", "name": "x", "train": 32, "validation": 8, "test": 8}
DISTILL = {"objective": "distill", "context": "reference", "learning_rate": 1e-5}
ROUND = ("sample", "align", "distill")
CRITIC = {
    "kind": "llm", "model": "m", "base_url": "http://localhost/v1", "max_tokens": 8000,
    "concurrency": 16, "price_in": 1, "price_out": 10,
}  # fmt: skip


def made(**sections) -> Experiment:
    given = {
        "name": "small", "model": SOLVER, "problems": SOURCE, "conditions": {"one": DISTILL},
        "training": {"rounds": 4, "questions_per_round": 32, "lora": {"rank": 64}},
        "evaluation": {"every": 4}, "engine": {"kind": "vllm", "context_length": 4096},
    }  # fmt: skip
    return Experiment.model_validate(given | sections)


def planned(machine: str = "h100x1", **sections) -> Plan:
    return plan(made(**sections), QWEN, named(machine), LENGTHS)


def of_the_file(name: str, machine: Machine = CPU, overrides: Sequence[str] = ()) -> Plan:
    measured = DATA / f"{name}.toml"  # a shipped file as it was when it was measured
    file = measured if measured.exists() else EXPERIMENTS / f"{name}.toml"
    experiment = load_experiment(file, overrides)
    folder = at_hand(experiment.model.name)
    shape = shape_of(experiment.model.name, folder)
    return plan(experiment, shape, machine, lengths_of(experiment, folder, None))


@pytest.mark.parametrize(
    ("name", "wall", "stages"),
    [  # seconds of whole runs on two quiet cores: the command's clock, Prefect's per stage
        ("quickstart", 433, {"sample": 99.7, "align": 16.4, "distill": 170.3, "evaluate": 117.1}),
        ("tokens", 428, {"sample": 85.9, "align": 37.1, "distill": 127.4, "evaluate": 139.9}),
        ("measured_laptop", 72 * 60, {}),  # another model
    ],
)
def test_a_plan_is_within_30_percent_of_a_finished_run(name, wall, stages):
    made = of_the_file(name)
    assert made.whole.seconds == pytest.approx(wall, rel=0.3)
    for stage, seconds in stages.items():
        assert made.stages[stage].seconds == pytest.approx(seconds, rel=0.3), stage


SHORT = ["seeds=[0]", "training.rounds=1", "training.warmup_steps=0", "evaluation.every=1"]


@pytest.mark.parametrize(
    ("name", "overrides", "gib"),
    [  # peak resident memory of the command's process on two cores
        ("quickstart", SHORT, 1.68),
        (
            "measured_laptop",
            [*SHORT, "problems.test=25", "problems.validation=8", "warmup.steps=2"],
            7.23,
        ),
    ],
)
def test_memory_is_within_15_percent_of_a_finished_run(name, overrides, gib):
    assert of_the_file(name, CPU, overrides).memory.total / GIB == pytest.approx(gib, rel=0.15)


def test_a_plan_is_tight_where_only_the_allocators_holes_do_not_fit():
    """7.4 GiB and holes of 5.6, 1.15 times the activations."""
    roomy, tight, small = (
        of_the_file("laptop", replace(CPU, memory=gib * GIB)) for gib in (13, 12, 7)
    )
    assert roomy.holes == pytest.approx(1.15 * roomy.memory.activations)
    assert [each.tight for each in (roomy, tight, small)] == [False, True, False]
    assert [bool(each.misfits) for each in (roomy, tight, small)] == [False, False, True]
    auto = ["training.tokens_per_microbatch=auto"]
    assert not of_the_file("laptop", replace(CPU, memory=12 * GIB), auto).tight
    on_gpus = of_the_file("laptop", named("h100x8"))
    assert (on_gpus.holes, on_gpus.tight) == (0, False)


def test_the_engines_batch_is_named_where_it_is_what_does_not_fit():
    sampling = {"batch_size": 100_000, "max_new_tokens": 2048}
    problems = SOURCE | {"test": 10_000}
    engine = {"kind": "transformers"}
    training = {"lora": {"rank": 4}, "activation_checkpointing": True, "tokens_per_microbatch": 1}
    given = {"sampling": sampling, "problems": problems, "engine": engine, "training": training}
    needed = plan(made(**given), QWEN, replace(CPU, memory=GIB), LENGTHS).memory
    machine = replace(CPU, memory=needed.total - 1)
    (line,) = plan(made(**given), QWEN, machine, LENGTHS).misfits
    assert line.endswith("lower sampling.batch_size")
    sampling |= {"batch_size": 4}
    assert not plan(made(**given), QWEN, machine, LENGTHS).misfits


def test_a_gpus_engine_takes_half_of_what_is_free():
    """Rows of 2,148 tokens at 112 KiB, and 32 bytes per logit: 251 MB; 4 GiB would hold 17."""
    memory = planned(engine={"kind": "transformers"}).memory
    row = 2148 * 114_688 + 32 * 151_936
    free = 79 * GIB - memory.stays
    # All of a test split's 96 requests fit into half of more than 60 GiB.
    assert free / 2 > 96 * row and memory.batch == 96 * row
    larger = planned(engine={"kind": "transformers"}, problems=SOURCE | {"test": 1000}).memory
    assert free / 2 - row < larger.batch <= free / 2


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_experiment_fits_where_it_is_meant_to_run(name):
    machine = {"paper": named("h100x4"), "paper-1gpu": named("a100x1")}.get(name)
    rows = ["problems.path=train.jsonl"] if name.startswith("gsm8k") else []
    made = of_the_file(name, machine or replace(CPU, memory=16 * GIB), rows)
    assert made.misfits == ()


def test_the_quickstart_writes_what_it_wrote():
    """21 checkpoints of 7.9 MB stayed; the tables had 37.7 MB at the end."""
    made = of_the_file("quickstart")
    assert made.kept == pytest.approx(21 * 7732 * 1024, rel=0.01)
    tables = made.whole.written - made.kept  # the quickstart writes no others
    assert tables == pytest.approx(37.7e6, rel=0.15)
    counts = [made.stages[stage].tokens for stage in ("sample", "evaluate")]
    drawn = 38_400 * 37.7 + 5_760 * 16  # responses of the run, and each prompt once
    assert counts[0] == pytest.approx(drawn, rel=0.1)


def test_a_step_by_hand():
    """LoRA's backward pass costs as much as a forward one, and 6 FLOPs per adapter weight."""
    experiment = made()
    student = QWEN.forward_flops(100, 1000)
    teacher = QWEN.forward_flops(1100, 1000)
    adapters = 6 * 69_730_304 * 1100
    step = step_of(experiment, QWEN, LENGTHS, experiment.conditions["one"])
    assert step.tokens == 32 * (1100 + 2100)
    assert step.flops == pytest.approx(
        1.07 * 32 * (2 * student + adapters + teacher) + 16 * student
    )
    assert step.batches == 5  # 71,904 padded positions of the teacher's, 16,384 a batch
    live = made(conditions={"one": DISTILL | {"teacher": {"kind": "trust_region"}}})
    both = step_of(live, QWEN, LENGTHS, live.conditions["one"])
    assert both.flops - step.flops == pytest.approx(1.07 * 32 * teacher)


def test_grpo_has_no_teacher_and_all_weights_cost_a_third_pass():
    grpo = {"objective": "grpo", "learning_rate": 1e-5, "group_size": 2}
    experiment = made(conditions={"one": grpo}, training={"rounds": 1, "questions_per_round": 4})
    step = step_of(experiment, QWEN, LENGTHS, experiment.conditions["one"])
    forward = QWEN.forward_flops(100, 1000)
    assert step.flops == pytest.approx(1.07 * 8 * 3 * forward + 16 * forward)
    every = checkpoint_bytes(experiment, QWEN, experiment.conditions["one"])
    assert every == 12 * QWEN.parameters


def test_bytes_of_the_paper():
    """837 MB per checkpoint of its adapters, 150 GB in all; a row of 2,048 tokens has 27 KB."""
    condition = {f"c{i}": DISTILL for i in range(3)}
    made = planned(conditions=condition, training={"rounds": 60, "lora": {"rank": 64}})
    assert made.stages["distill"].written == pytest.approx(180 * 837e6, rel=0.01)
    # Whole ones are due every 10 rounds and scored every 4, 18 in all; with vLLM the other 42
    # rounds write the weights alone, a third.
    sparse = {"rounds": 60, "lora": {"rank": 64}, "save_every": 10}
    read = planned(conditions=condition, training=sparse, engine={"kind": "vllm"})
    assert read.stages["distill"].written == pytest.approx(3 * (18 + 42 / 3) * 837e6, rel=0.01)
    assert rollout_bytes(QWEN, 2048) == pytest.approx(27e3, rel=0.05)


def test_each_round_waits_for_the_critics_slowest_answer():
    critiqued = {"one": DISTILL | {"context": "step_aligned"}}
    made = planned(conditions=critiqued, critic=CRITIC | {"max_total_tokens": 10**12})
    waves = (4000 + 8000) / CRITIC_RATE  # 32 requests, 16 at a time: one of half length, one whole
    assert made.stages["align"].seconds == pytest.approx(4 * waves, rel=0.01)
    assert made.stages["align"].critic_out == 4 * 32 * 4000
    read, written = made.whole.critic_in, made.whole.critic_out
    assert made.whole.price == pytest.approx((read + 10 * written) / 1e6)
    assert made.bound.startswith("align")


@pytest.mark.parametrize("batches", [1, 4, None])
def test_a_critic_on_servers_judges_while_others_are_sampled(batches):
    """4 batches: it has work for the last three. vLLM's server finishes samples one by one."""
    engine = {} if batches is None else {"engine": {"kind": "transformers"}}
    rows = {"sampling": {"batch_size": 32 // batches}} if batches else {}
    settings = {"conditions": {"one": DISTILL | {"context": "step_aligned"}}, **engine, **rows}
    after = planned(**settings, critic=CRITIC | {"max_total_tokens": 10**12}).stages
    beside = planned(**settings, critic=CRITIC).stages
    share = 1 if batches is None else 1 - 1 / batches
    saved = after["align"].seconds - beside["align"].seconds
    assert saved == pytest.approx(share * after["sample"].seconds)
    assert beside["sample"] == after["sample"]
    assert beside["align"].price == after["align"].price


def test_who_samples_for_longer_than_the_critic_judges_does_not_wait_for_it():
    critiqued = {"one": DISTILL | {"context": "step_aligned"}}
    quick = planned(conditions=critiqued, critic=CRITIC | {"max_tokens": 10, "attempts": 1})
    assert quick.stages["align"].seconds == 0 < quick.stages["sample"].seconds


@pytest.mark.parametrize(
    ("tokens", "urls", "trainer_waits"),
    [(8000, (), True), (80, (), False), (80, ("http://localhost",), True)],
)
def test_a_lag_hides_the_critic_and_servers_elsewhere_behind_the_training(
    tokens, urls, trainer_waits
):
    """Of four rounds three are made beside the training of the one before."""
    settings = {
        "conditions": {"one": DISTILL | {"context": "step_aligned"}},
        "critic": CRITIC | {"max_tokens": tokens, "max_total_tokens": 10**12},
        "engine": {"kind": "vllm", "context_length": 4096, "urls": urls},
    }
    rounds = {"rounds": 4, "questions_per_round": 32, "lora": {"rank": 64}}
    plain = planned(**settings, training=rounds)
    lagging = planned(**settings, training=rounds | {"lag": 1})
    sampled, aligned, distilled = (plain.stages[name].seconds for name in ROUND)
    condition = plain.experiment.conditions["one"]
    writing = written_bytes(plain.experiment, QWEN, condition) / plain.machine.disk
    sampled, aligned, trained = sampled / 4, aligned / 4, (distilled - writing) / 4
    beside = aligned + (sampled if urls else 0)
    saved = plain.whole.seconds - lagging.whole.seconds
    assert saved == pytest.approx(3 * min(beside, trained))
    assert (beside > trained) == trainer_waits
    in_process = settings | {"engine": {"kind": "transformers"}}
    same = [planned(**in_process, training=rounds | {"lag": lag}).stages for lag in (0, 1)]
    assert same[0] == same[1]


@pytest.mark.parametrize("urls", [(), ("http://localhost",), None])
def test_servers_score_a_policy_while_they_have_no_round_to_sample(urls):
    """Scored after each of four rounds, the first three times beside the round that follows."""
    server = {"kind": "vllm", "context_length": 4096, "urls": urls}
    settings = {
        "conditions": {"one": DISTILL | {"context": "step_aligned"}},
        "critic": CRITIC | {"max_tokens": 800, "max_total_tokens": 10**12},
        "engine": {"kind": "transformers"} if urls is None else server,
    }
    once = planned(**settings, evaluation={"every": 4, "samples": 256})
    often = planned(**settings, evaluation={"every": 1, "samples": 256})
    _, aligned, distilled = (once.stages[name].seconds for name in ROUND)
    writing = written_bytes(once.experiment, QWEN, once.experiment.conditions["one"])
    trained = distilled - writing / once.machine.disk
    score = once.stages["evaluate"].seconds / 2  # that of the base, and of the last policy
    idle = 0 if urls is None else (aligned + (trained if urls else 0)) / 4
    assert idle < score
    assert often.stages["evaluate"].seconds == pytest.approx(5 * score - 3 * idle)
    assert often.stages["evaluate"].busy == pytest.approx(2.5 * once.stages["evaluate"].busy)


def test_a_second_worker_takes_half_of_the_conditions_and_seeds():
    alone = planned()
    assert "nothing" in alone.second_worker
    four = planned(seeds=[0, 1, 2, 3])
    assert len(four.lineages) == 4 and sum(four.lineages) < four.whole.seconds
    assert sum(alone.lineages) == pytest.approx(four.lineages[0])
    whole, lineage = four.whole.seconds, four.lineages[0]
    assert four.second_worker.startswith(f"{(whole - 2 * lineage) / 60:.0f} min")


def test_workers_take_the_next_free_condition_and_seed_in_order():
    made = replace(planned(seeds=[0, 1]), lineages=(5.0, 3.0, 2.0, 4.0))
    alone = made.whole.seconds - 14
    # Two workers: 5 and 3, then 2 after the 3, then 4 after either at 5.
    assert [made.seconds_with(count) - alone for count in (1, 2, 4, 9)] == [14, 9, 5, 5]


def test_trials_are_scored_on_validation_and_the_winner_alone_on_test():
    single = of_the_file("quickstart")
    swept = of_the_file("quickstart", overrides=["conditions.grpo.learning_rate=[2e-4, 4e-4]"])
    # One trial more: at rounds 2, 10 and 20 with 3 seeds, 4 samples of each of 100 problems.
    prompt, response = single.lengths.prompt, single.lengths.response
    more = swept.stages["evaluate"].tokens - single.stages["evaluate"].tokens
    assert more == pytest.approx(3 * 3 * 100 * (prompt + 4 * response))


def test_more_devices_train_faster_and_are_used_less():
    one, eight = planned("h100x1"), planned("h100x8")
    assert eight.stages["distill"].seconds < one.stages["distill"].seconds
    assert eight.stages["sample"].seconds == one.stages["sample"].seconds
    assert eight.use < one.use <= 1


def test_a_fixed_setting_makes_it_fit():
    """The setting that a misfit names is tried."""
    assert not planned().misfits
    long = {"kind": "vllm", "context_length": 40_960, "cache_gib": 4}
    (line,) = planned(engine=long).misfits
    assert "4.4 GiB" in line and "engine.cache_gib = 5" in line
    assert "engine.context_length = 3072" in line
    assert not planned(engine=long | {"cache_gib": 5}).misfits
    assert not planned(engine=long | {"context_length": 3072}).misfits
    (line,) = planned(engine={"kind": "vllm", "context_length": 2048}).misfits
    assert "engine.context_length = 2,048 is less" in line and "3,072" in line
    training = {"lora": {"rank": 64}, "tokens_per_microbatch": 40_000}
    (line,) = planned(training=training).misfits
    assert line.startswith("vLLM does not start") and "activation_checkpointing = true" in line
    assert not planned(training=training | {"activation_checkpointing": True}).misfits
    engine = {"kind": "vllm", "context_length": 4096, "cache_gib": 4}
    (line,) = planned(training=training, engine=engine).misfits
    assert line.startswith("memory:")
    setting = int(line.rpartition("= ")[2])
    fitting = training | {"tokens_per_microbatch": setting}
    assert not planned(training=fitting, engine=engine).misfits
    more = training | {"tokens_per_microbatch": setting + 1024}
    assert planned(training=more, engine=engine).misfits
    split = {"kind": "vllm", "cache_gib": 5, "arguments": ["--tensor-parallel-size=4"]}
    (line,) = planned(engine=split).misfits
    assert "needs as many devices" in line and not planned("h100x4", engine=split).misfits


def test_auto_micro_batches_fit_where_the_fixed_size_does_not():
    """Positions keep 28 × 116,608 + 32,768 bytes: 16,384 take 50.3 GiB of 79, 8,192 half of it."""
    fixed = {"lora": {"rank": 64}, "tokens_per_microbatch": 16_384}
    auto = fixed | {"tokens_per_microbatch": "auto"}
    engine = {"kind": "vllm", "context_length": 4096, "cache_gib": 24}
    assert planned(training=fixed, engine=engine).misfits
    assert not planned(training=auto, engine=engine).misfits
    half = planned(training=auto | {"tokens_per_microbatch": 8192}, engine=engine)
    assert planned(training=auto, engine=engine).memory == half.memory


def test_a_critic_needs_time_for_its_longest_answer():
    """16,384 tokens at 40 per second are 410 s, and a request is given up after 300."""
    critiqued = {"conditions": {"one": DISTILL | {"context": "step_aligned"}}}
    critic = CRITIC | {"max_tokens": 16_384}
    (line,) = planned(**critiqued, critic=critic).misfits
    assert "critic.timeout = 410" in line
    assert not planned(**critiqued, critic=critic | {"timeout": 410}).misfits


def test_machines_by_name():
    assert named("h100x8").count == 8 and named("h200").memory == 140 * GIB
    assert named("cpu").flops % machines.CORE_FLOPS == 0
    for wrong in ("h100x0", "tpu", "x8", "h100 x8"):
        with pytest.raises(ConfigError, match="no such machine"):
            named(wrong)


@pytest.mark.parametrize(
    ("name", "gib", "machine"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100x2"), ("NVIDIA A100-SXM4-80GB", 79.1, "a100x2"),
        ("NVIDIA H100 PCIe", 79.6, "h100x2"), ("NVIDIA H200", 139.8, "h200x2"),
        ("NVIDIA GH200 480GB", 94.5, None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, None),
    ],
)  # fmt: skip
def test_a_gpu_that_is_here_has_the_memory_that_it_says(monkeypatch, name, gib, machine):
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda _: name,
        get_device_properties=lambda _: SimpleNamespace(total_memory=int(gib * GIB)),
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", cuda)
    if machine is None:
        with pytest.raises(ConfigError, match="no speeds of this GPU"):
            machines.unmeasured("auto")
    else:
        found = machines.unmeasured("auto")
        assert (found.name, found.count, found.memory) == (machine, 2, int(gib * GIB))


def test_the_memory_of_a_control_group_is_all_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(machines, "_CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    whole = machines.here().memory
    (tmp_path / "memory.max").write_text(f"{GIB // 4}\n")
    assert machines.here().memory == GIB // 4 < whole


@pytest.mark.parametrize(("threads", "cores"), [("3", 3), ("4,2", 4), ("", None), ("many", None)])
def test_threads_are_read_as_openmp_reads_them(monkeypatch, threads, cores):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert machines.here().flops == (cores or machines._cores()) * machines.CORE_FLOPS


def test_a_gpu_is_slower_in_float32():
    """67 instead of 989 TFLOP/s of an H100, of which half instead of 16.5 % are reached."""
    single = planned(model=SOLVER | {"dtype": "float32"}, engine={"kind": "transformers"})
    half = planned(engine={"kind": "transformers"})
    assert single.machine.flops == 67e12 and "float32" in single.machine.source
    times = [made.stages["distill"].busy for made in (single, half)]
    assert times[0] / times[1] == pytest.approx(989 * 0.165 / (67 * 0.5), rel=0.1)


@pytest.mark.parametrize(("hinted", "tokens"), [(0, 1100), (0.5, 1600)])
def test_hinted_traces_of_a_warm_up_are_as_long_as_the_teachers_prompt(hinted, tokens):
    """Prompts of 100 tokens, of 1,100 with a context; responses of 1,000; 10 steps of 16."""
    warmup = {"steps": 10, "batch_size": 16, "learning_rate": 1e-4, "hinted": hinted}
    made = planned(warmup=warmup)
    assert made.stages["warm-up"].tokens == 160 * tokens


def test_a_machine_is_measured():
    made = machines.measured(CPU, width=128, inner=384, dtype="float32")
    assert 1e8 < made.flops < 1e14 and 0 < made.decode_share <= 1
    assert made.handling / CPU.handling == pytest.approx(max(1.0, CPU.flops / made.flops))
    assert "measured now" in made.source and "would be faster" not in made.source


def test_fast_products_make_nothing_else_faster(monkeypatch):
    monkeypatch.setattr(machines, "_fastest", lambda work: (work(), 1e-3)[1])  # 2.1 TFLOP/s
    made = machines.measured(CPU, width=128, inner=384, dtype="float32")
    assert made.flops > 10 * CPU.flops
    assert (made.activation, made.launch, made.handling) == (
        CPU.activation, CPU.launch, CPU.handling
    )  # fmt: skip


@pytest.mark.parametrize(("half", "advised"), [(0.2, True), (4.0, False)])
def test_a_machine_is_measured_in_the_dtype_of_the_model(monkeypatch, half, advised):
    """Products in bfloat16 take 1 / half of float32's time; nothing else is slower for that."""
    times = iter([1.0, 1.0 / half, 64 * 128 * 384 / 1024**3 / half])
    monkeypatch.setattr(machines, "_fastest", lambda work: (work(), next(times))[1])
    made = machines.measured(CPU, width=128, inner=384, dtype="bfloat16")
    assert made.flops == pytest.approx(2 * 1024**3 * half) and made.decode_share == 1
    assert made.computing_in("bfloat16").flops == made.flops
    assert made.handling / CPU.handling == pytest.approx(CPU.flops / (2 * 1024**3))
    assert ("model.dtype = 'float32' would be faster" in made.source) == advised


def test_lengths_are_counted_given_or_bounded():
    experiment = load_experiment(EXPERIMENTS / "quickstart.toml")
    counted = lengths_of(experiment, at_hand("builtin:tiny-solver"), None)
    assert counted.response == pytest.approx(37.7, rel=0.05)  # of 100,000 rollouts of a run
    assert counted.prompt == pytest.approx(16, rel=0.15)
    assert counted.shown == pytest.approx(55.5, rel=0.05)
    assert lengths_of(made(), None, None).response == 2048
    assert lengths_of(made(), None, 900).response == 900
    assert lengths_of(made(), None, 9000).response == 2048
    assert replace(counted, response=1).basis == counted.basis


def test_the_second_model_of_a_cascade_answers_what_the_first_leaves():
    critiqued = {"one": DISTILL | {"context": "step_aligned"}}
    small = CRITIC | {"price_in": 0.0, "price_out": 1.0}
    critic = {"kind": "cascade", "small": small, "large": CRITIC}
    made = planned(conditions=critiqued, critic=critic)
    alone = planned(conditions=critiqued, critic=CRITIC)
    written = 4 * 32 * 4000  # of the small model; the large one has half of the traces
    assert made.whole.critic_out == 1.5 * written
    assert made.whole.price == pytest.approx(written / 1e6 + alone.whole.price / 2)
