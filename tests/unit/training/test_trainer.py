from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from sdcore.config import DistillConfig, GrpoConfig, TeacherConfig, TrainingConfig, WarmupConfig
from sdcore.errors import ModelError, TrainingError
from sdcore.models import policies, weight_files
from sdcore.training import batches
from sdcore.training.teacher import trained
from sdcore.training.trainer import Trainer
from tests.helpers.tiny import LORA, MODELS, adapted, examples, llama

ADAPTER, FULL = LORA, None


def distill(**changes):
    defaults = {"context": "none", "learning_rate": 1e-2}
    return DistillConfig(objective="distill", **defaults | changes)


def reward(**changes):
    return GrpoConfig(objective="grpo", learning_rate=1e-2, **changes)


def supervised(**changes):
    return WarmupConfig(steps=20, learning_rate=1e-2, **changes)


def trainer(condition=None, lora=ADAPTER, *, model=None, seed=0, total_steps=20, **training):
    model = model or (adapted() if lora else llama())
    settings = TrainingConfig(lora=lora, **training)
    return Trainer(model, condition or distill(), settings, total_steps=total_steps, seed=seed)


def bits(made):
    return {name: weight.clone() for name, weight in weight_files.gathered(made.model).items()}


def assert_same_bits(first, second):
    ours, theirs = bits(first), bits(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def response_logprobs(model, prompt, response, temperature=1.0):
    logits_LV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return torch.log_softmax(logits_LV[len(prompt) - 1 : -1] / temperature, -1)


@torch.no_grad()
def naive_logprobs(*arguments):
    return response_logprobs(*arguments)


@pytest.mark.parametrize("lora", [ADAPTER, FULL], ids=["adapter", "full"])
def test_loss_is_the_mean_kl_of_all_response_tokens_from_the_base(lora):
    base, some = llama(), examples()
    divergences = []
    for each in some:
        log_q = naive_logprobs(base, each.prompt_ids, each.response_ids)
        log_t = naive_logprobs(base, each.teacher_prompt_ids, each.response_ids)
        divergences.append((log_t.exp() * (log_t - log_q)).sum(1))
    update = trainer(lora=lora).step(some)
    assert update.loss == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-4)
    assert update.kl == pytest.approx(update.loss)
    assert (update.rollouts, update.tokens) == (6, sum(len(e.response_ids) for e in some))
    assert update.mean_length == update.tokens / 6


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_full_logits_through_the_whole_model(name, tmp_path):
    lora, some = ADAPTER if name == "adapter" else FULL, examples()
    model = MODELS[name]().eval()
    naive = deepcopy(model)
    made = trainer(lora=lora, model=model, max_grad_norm=1e9)
    made.step(some)
    made.save(tmp_path / "checkpoint")
    moments = weight_files.load_tensors(tmp_path / "checkpoint/trainer/state.safetensors")
    if lora is FULL:
        naive.requires_grad_(True)
    tokens = sum(len(each.response_ids) for each in some)
    for each in some:
        with torch.no_grad():
            log_t = response_logprobs(naive, each.teacher_prompt_ids, each.response_ids)
        log_q = response_logprobs(naive, each.prompt_ids, each.response_ids)
        ((log_t.exp() * (log_t - log_q)).sum() / tokens).backward()
    for weight_name, weight in trained(naive).items():
        gradient = moments[f"exp_avg/{weight_name}"] / 0.1  # of AdamW, after one step
        scale = weight.grad.abs().max().item()
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-4 * scale + 1e-8)


@pytest.mark.parametrize("lora", [ADAPTER, FULL], ids=["adapter", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {"divergence": "forward_kl"},
        {"divergence": "reverse_kl"},
        {"divergence": "jsd"},
        {"support": "teacher", "top_k": 4},
    ],
    ids=str,
)
def test_distillation_closes_the_gap_to_the_frozen_teacher(lora, changes):
    made, some = trainer(distill(**changes), lora), examples()
    first, *_, last = [made.step(some).kl for _ in range(12)]
    assert last < 0.5 * first


@pytest.mark.parametrize("lora", [ADAPTER, FULL], ids=["adapter", "full"])
def test_a_warm_up_has_the_mean_cross_entropy_of_the_traces_and_learns_them(lora):
    base, some = llama(), examples()
    logprobs = [
        log_q[range(len(log_q)), each.response_ids]
        for each in some
        for log_q in [naive_logprobs(base, each.prompt_ids, each.response_ids)]
    ]
    made = trainer(supervised(), lora)
    first, *_, last = [made.step(some) for _ in range(12)]
    assert first.loss == pytest.approx(-torch.cat(logprobs).mean().item(), rel=1e-4)
    assert (first.kl, first.signals[0].advantage.unique().tolist()) == (None, [1.0])
    assert last.loss < 0.6 * first.loss


def test_grpo_makes_rewarded_rollouts_likelier_and_others_less_so():
    made, some = trainer(reward(normalise="sequence")), examples()
    before, after = (_sequence_logprobs(made, some, steps) for steps in (0, 5))
    gains = [(b - a) * e.advantage for a, b, e in zip(before, after, some)]
    assert min(gains) > 0


@torch.no_grad()
def test_grpo_reuses_a_batch_at_the_sampling_temperature():
    made = Trainer(llama(), reward(), TrainingConfig(), total_steps=9, seed=0, temperature=1.3)
    some = made.remember(examples())
    old = [_drawn_logprobs(made, each, 1.3) for each in some]
    for each, logprobs_T in zip(some, old, strict=True):
        torch.testing.assert_close(torch.tensor(each.old_logprobs), logprobs_T)
    with torch.enable_grad():
        made.step(some)
    ratios = [
        (_drawn_logprobs(made, each, 1.3) - before).exp()
        for each, before in zip(some, old, strict=True)
    ]
    assert max((ratio - 1).abs().max() for ratio in ratios) > 0.2  # some are clipped
    losses = [
        -torch.minimum(ratio * each.advantage, ratio.clamp(0.8, 1.2) * each.advantage)
        for each, ratio in zip(some, ratios, strict=True)
    ]
    with torch.enable_grad():
        update = made.step(some)
    assert update.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def _drawn_logprobs(made, example, temperature):
    log_q = response_logprobs(made.model, example.prompt_ids, example.response_ids, temperature)
    return log_q[range(len(log_q)), example.response_ids]


def _sequence_logprobs(made, some, steps):
    for _ in range(steps):
        made.step([replace(e, sampled_logprobs=None) for e in some])
    return [float(s.student_logprob.sum()) for s in made.signals(some)]


@pytest.mark.parametrize("condition", [distill(), reward(), reward(normalise="sequence")], ids=str)
def test_micro_batches_change_nothing(condition):
    some = examples(9)
    whole, split = trainer(condition), trainer(condition, tokens_per_microbatch=20)
    ours, theirs = split.step(some), whole.step(some)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-7)
    assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    for mine, other in zip(ours.signals, theirs.signals, strict=True):
        torch.testing.assert_close(mine.kl, other.kl)
        torch.testing.assert_close(mine.student_logprob, other.student_logprob)


def test_signals_are_those_of_the_step_in_the_order_of_the_examples():
    made, some = trainer(), examples()
    before = made.signals(some)
    update = made.step(some)
    for example, ours, theirs in zip(some, before, update.signals, strict=True):
        assert len(ours.advantage) == len(example.response_ids)
        torch.testing.assert_close(ours.advantage, theirs.advantage)
        torch.testing.assert_close(ours.advantage, ours.teacher_logprob - ours.student_logprob)
        log_q = naive_logprobs(llama(), example.prompt_ids, example.response_ids)
        entropy = -(log_q.exp() * log_q).sum(1)
        torch.testing.assert_close(ours.entropy, entropy, rtol=1e-4, atol=1e-4)
    assert update.entropy == pytest.approx(
        float(torch.cat([s.entropy for s in before]).mean()), rel=1e-5
    )


def test_grpo_signals_carry_the_advantage_and_no_teacher():
    signals = trainer(reward()).signals(examples(2))
    assert signals[1].advantage.tolist() == [-1.0] * 6
    assert signals[0].teacher_logprob is None


def test_drift_is_the_mean_distance_to_the_samplers_logprobs():
    made, some = trainer(), examples()
    exact = [s.student_logprob.tolist() for s in made.signals(some)]
    shifted = [replace(e, sampled_logprobs=[p + 0.25 for p in own]) for e, own in zip(some, exact)]
    assert made.step(shifted).logprob_drift == pytest.approx(0.25, abs=1e-5)
    assert made.step([replace(e, sampled_logprobs=None) for e in some]).logprob_drift is None


def test_without_a_context_the_teacher_is_the_student():
    update = trainer().step(examples(same_prompt=True))
    assert abs(update.kl) < 1e-6
    assert update.grad_norm < 1e-4


@pytest.mark.parametrize("kind", ["frozen", "trust_region"])
def test_a_teacher_that_is_not_the_student_at_the_start_is_found_out(kind):
    model = adapted()
    with torch.no_grad():
        for weight in weight_files.gathered(model).values():
            weight.add_(0.3)
    made = trainer(distill(teacher=TeacherConfig(kind=kind)), model=model)
    with pytest.raises(TrainingError, match="differ on the same prompt"):
        made.step(examples())


def test_examples_longer_than_the_models_positions_are_refused():
    long = replace(examples()[0], teacher_prompt_ids=[3] * 64)
    with pytest.raises(TrainingError, match="rollout-0"):
        trainer().step([*examples(), long])


def test_a_teacher_that_scores_other_tokens_is_found_out(monkeypatch):
    def shortened(those):
        cut = [replace(each, response_ids=each.response_ids[:-1]) for each in those]
        return batches.pack([e.teacher_prompt_ids for e in cut], [e.response_ids for e in cut])

    made, some = trainer(), examples()
    made.step(some)
    monkeypatch.setattr(batches, "teacher_side", shortened)
    with pytest.raises(TrainingError, match="score different tokens"):
        made.step(some)


@pytest.mark.parametrize("condition", [distill(), reward()], ids=["distill", "grpo"])
def test_drift_is_the_log_prob_that_the_samples_lose(condition):
    sampled = [
        replace(e, sampled_logprobs=own.gather(1, torch.tensor(e.response_ids)[:, None])[:, 0])
        for e in examples()
        for own in [naive_logprobs(llama(), e.prompt_ids, e.response_ids)]
    ]
    made = trainer(condition, lora=FULL)
    assert made.drift(sampled) == pytest.approx(0, abs=1e-6)
    before = bits(made)
    made.step([replace(e, advantage=1.0) for e in sampled])
    lost = torch.cat([
        torch.as_tensor(e.sampled_logprobs)
        - naive_logprobs(made.model, e.prompt_ids, e.response_ids).gather(
            1, torch.tensor(e.response_ids)[:, None]
        )[:, 0]
        for e in sampled
    ])  # fmt: skip
    assert not all(torch.equal(weight, bits(made)[name]) for name, weight in before.items())
    assert made.drift(sampled) == pytest.approx(lost.mean().item(), rel=1e-4)


def test_grpo_needs_an_advantage_and_distillation_a_teacher_prompt():
    bare = [replace(e, advantage=None, teacher_prompt_ids=None) for e in examples()]
    for condition in (reward(), distill()):
        with pytest.raises(TrainingError, match="rollout-3"):
            trainer(condition).step(bare)


@pytest.mark.parametrize("lost", ["advantage", "teacher_prompt_ids", "response_ids"])
def test_what_one_micro_batch_cannot_use_is_refused_before_the_first(lost):
    """Every rank sees it then, also those whose own examples are sound."""
    condition, some = distill() if lost == "teacher_prompt_ids" else reward(), examples(9)
    made, twin = (trainer(condition, tokens_per_microbatch=20) for _ in range(2))
    assert [len(e.response_ids) for e in some[:4:3]] == [4, 4]  # the shortest are scored last
    empty = [] if lost == "response_ids" else None
    with pytest.raises(TrainingError):
        made.step([replace(e, **{lost: empty}) if e is some[3] else e for e in some])
    for each in (made, twin):
        each.step(some)
    assert_same_bits(made, twin)


def test_a_loss_that_is_not_finite_names_its_rollout_and_changes_nothing():
    made, twin, some = trainer(reward()), trainer(reward()), examples()
    for each in (made, twin):
        each.step(some)
    broken = [*some[:4], replace(some[4], advantage=float("inf")), some[5]]
    with pytest.raises(TrainingError, match="rollouts rollout-4\n"):
        made.step(broken)
    assert_same_bits(made, twin)
    for each in (made, twin):
        each.step(some)
    assert_same_bits(made, twin)


@pytest.mark.parametrize("kind", ["frozen", "ema"])
def test_a_gradient_that_is_not_finite_changes_nothing_either(kind):
    condition = distill(teacher=TeacherConfig(kind=kind, decay=0.5))
    made, twin, some = trainer(condition, FULL), trainer(condition, FULL), examples()
    weight = next(iter(trained(made.model).values()))
    hook = weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="rollouts rollout-0, rollout-1, "):
        made.step(some)
    hook.remove()
    for each in (made, twin):
        for _ in range(2):
            each.step(some)
    assert_same_bits(made, twin)


CASES = {
    "frozen": (distill(), ADAPTER),
    "frozen, full": (distill(), FULL),
    "ema": (distill(teacher=TeacherConfig(kind="ema", decay=0.5)), ADAPTER),
    "ema, full": (distill(teacher=TeacherConfig(kind="ema", decay=0.5)), FULL),
    "trust region": (distill(teacher=TeacherConfig(kind="trust_region")), ADAPTER),
    "live": (distill(teacher=TeacherConfig(kind="live")), ADAPTER),
    "grpo": (reward(kl_coefficient=0.1), ADAPTER),
    "grpo, full": (reward(kl_coefficient=0.1), FULL),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_goes_on_bit_for_bit(case, tmp_path):
    schedule = {"schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1}
    made, again = (trainer(*CASES[case], **schedule) for _ in range(2))
    some, others = examples(4), examples(5)
    made.step(some)
    made.step(others)
    made.save(tmp_path / "checkpoint")
    torch.manual_seed(123)  # whatever the new process's random state
    again.load(tmp_path / "checkpoint")
    for _ in range(2):
        ours, theirs = made.step(some), again.step(some)
        assert replace(ours, seconds=0, signals=[]) == replace(theirs, seconds=0, signals=[])
    assert_same_bits(made, again)


@pytest.mark.parametrize("lora", [ADAPTER, FULL], ids=["adapter", "full"])
def test_an_averaged_teacher_follows_each_step(lora, tmp_path):
    made = trainer(distill(teacher=TeacherConfig(kind="ema", decay=0.75)), lora)
    before = {name: weight.detach().clone() for name, weight in trained(made.model).items()}
    made.step(examples())
    made.save(tmp_path / "checkpoint")
    state = weight_files.load_tensors(tmp_path / "checkpoint/trainer/state.safetensors")
    after = trained(made.model)  # an adapter's A has no gradient yet, because B is zero
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())
    for name, weight in after.items():
        expected = 0.75 * before[name] + 0.25 * weight.detach()
        torch.testing.assert_close(state[f"average/{name}"], expected)


def test_resume_under_other_settings_is_refused(tmp_path):
    trainer().save(tmp_path / "checkpoint")
    with pytest.raises(ModelError, match=r"condition.learning_rate was 0.01, is 0.5"):
        trainer(distill(learning_rate=0.5)).load(tmp_path / "checkpoint")


@pytest.mark.parametrize("lora", [ADAPTER, FULL], ids=["adapter", "full"])
def test_activation_checkpointing_changes_nothing(lora):
    plain, frugal = trainer(lora=lora), trainer(lora=lora, activation_checkpointing=True)
    for made in (plain, frugal):
        made.step(examples())
    assert_same_bits(plain, frugal)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_policy_trains_float32_weights_and_learns(name):
    lora = ADAPTER if name == "adapter" else FULL
    half = (llama if lora else MODELS[name])().to(torch.bfloat16)
    exact = deepcopy(half).float()
    made, single = (
        trainer(lora=lora, model=policies.attach_lora(model, lora, 0) if lora else model)
        for model in (half, exact)
    )
    some, products = examples(), set()
    for module in made.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, product: products.add(product.dtype))
    first, *_, last = [made.step(some).kl for _ in range(12)]
    assert products == {torch.bfloat16}
    assert {weight.dtype for weight in weight_files.gathered(made.model).values()} == {
        torch.float32
    }
    assert first == pytest.approx(single.step(some).kl, rel=0.1)
    assert last < 0.6 * first


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_gets_bfloat16_and_learns_the_same_bits(monkeypatch, checkpointing):
    def stepped():
        model = policies.attach_lora(llama().to(torch.bfloat16), LORA, 0)
        made, seen = trainer(model=model, activation_checkpointing=checkpointing), set()

        def look(_, given):
            if torch.is_grad_enabled():  # what stays in memory
                seen.add(given[0].dtype)

        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_pre_hook(look)
        for _ in range(2):
            made.step(examples())
        return made, seen

    ours, seen = stepped()
    monkeypatch.setattr(
        "sdcore.training.trainer.disable_input_dtype_casting", lambda *_, **__: nullcontext()
    )
    theirs, copied = stepped()
    assert_same_bits(ours, theirs)
    assert (seen, copied) == ({torch.bfloat16}, {torch.float32})


def test_a_teacher_that_expects_another_first_token_stops_the_first_step():
    sharp = llama(tied=False)
    sharp.lm_head.weight.data *= 40  # each prompt makes one next token nearly certain
    some = [replace(each, response_ids=each.response_ids[:1]) for each in examples()]
    some = [replace(each, sampled_logprobs=None) for each in some]
    made = trainer(lora=FULL, model=sharp)
    before = bits(made)
    with pytest.raises(TrainingError, match="another beginning of the response"):
        made.step(some)
    assert all(torch.equal(weight, before[name]) for name, weight in bits(made).items())
    own = [replace(each, teacher_prompt_ids=each.prompt_ids) for each in some]
    assert made.step(own).first_token_kl == pytest.approx(0, abs=1e-4)
