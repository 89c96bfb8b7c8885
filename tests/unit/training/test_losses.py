import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from sdcore.config import DistillConfig, GrpoConfig
from sdcore.training.losses import cross_entropy, distillation, group_advantages, grpo
from sdcore.training.projection import Head, HeadInput, chunked_loss
from tests.helpers.chunks import chunks_of

T, D, V = 12, 6, 40


def distill(**changes):
    return DistillConfig(objective="distill", context="none", learning_rate=1e-3, **changes)


def one_token(q, t, objective, token=0):
    """Loss and logit gradient of one token: the hidden state is the log of q, the head identity."""
    logits = torch.tensor([q]).log().requires_grad_()
    teacher = [HeadInput(torch.tensor([t]).log(), Head(torch.eye(len(t))))] if t else []
    student = HeadInput(logits, Head(torch.eye(len(q))))
    loss, *_ = chunked_loss(student, teacher, torch.tensor([token]), torch.ones(1), objective)
    loss.backward()
    return loss.item(), logits.grad[0].tolist()


def test_forward_kl_has_gradient_student_minus_teacher():
    loss, gradient = one_token([0.5, 0.5], [0.75, 0.25], partial(distillation, settings=distill()))
    assert loss == pytest.approx(0.130812, abs=2e-6)  # 3/4 ln 3/2 + 1/4 ln 1/2
    assert gradient == pytest.approx([-0.25, 0.25])


def test_token_clip_scales_loss_and_gradient():
    # L = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812, so c / L = 0.764456, and 0.764456 * 0.25 = 0.191114
    objective = partial(distillation, settings=distill(clip="token", clip_value=0.1))
    loss, gradient = one_token([0.5, 0.5], [0.75, 0.25], objective)
    assert loss == pytest.approx(0.1)
    assert gradient == pytest.approx([-0.191114, 0.191114], abs=1e-6)
    below = partial(distillation, settings=distill(clip="token", clip_value=0.14))
    assert one_token([0.5, 0.5], [0.75, 0.25], below) == (
        pytest.approx(0.130812, abs=2e-6),
        pytest.approx([-0.25, 0.25]),
    )


@pytest.mark.parametrize("support", ["vocabulary", "teacher", "student"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_clipping_keeps_the_direction_of_every_gradient(divergence, support):
    """Clipped is L · min(1, c / L) with the factor held constant, in value and gradient."""
    drawn = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 200, V, generator=drawn, dtype=torch.float64) * 1.5
    logits.requires_grad_()
    eye = Head(torch.eye(V, dtype=torch.float64))

    def gradient_of(**clip):
        settings = distill(divergence=divergence, support=support, top_k=5, **clip)
        loss, loss_N, _ = chunked_loss(
            HeadInput(logits, eye), [HeadInput(teacher, eye)], torch.zeros(200, dtype=torch.long),
            torch.ones(200), partial(distillation, settings=settings),
        )  # fmt: skip
        return loss_N, torch.autograd.grad(loss, logits)[0]

    loss_N, gradient_NV = gradient_of()
    bound = loss_N.median().item()
    clipped_N, clipped_NV = gradient_of(clip="token", clip_value=bound)
    torch.testing.assert_close(clipped_N, loss_N.clamp(max=bound))
    scale_N = (bound / loss_N).clamp(max=1)
    torch.testing.assert_close(clipped_NV, gradient_NV * scale_N[:, None])


def test_clipping_leaves_tokens_without_divergence_alone():
    objective = partial(distillation, settings=distill(clip="token", clip_value=0.1))
    loss, gradient = one_token([0.5, 0.5], [0.5, 0.5], objective)
    assert (loss, gradient) == (0.0, [0.0, 0.0])


def test_policy_gradient_pushes_the_sampled_token_by_its_advantage():
    # A = ln(3/4) - ln(1/2) = 0.405465; loss -A ln(1/2); gradient -A (onehot - q)
    objective = partial(distillation, settings=distill(divergence="policy_gradient"))
    loss, gradient = one_token([0.5, 0.5], [0.75, 0.25], objective)
    assert loss == pytest.approx(0.405465 * 0.693147, abs=2e-6)
    assert gradient == pytest.approx([-0.202733, 0.202733], abs=2e-6)


def test_expected_policy_gradient_is_the_reverse_kl_gradient():
    q, t = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    sampled = partial(distillation, settings=distill(divergence="policy_gradient"))
    exact = partial(distillation, settings=distill(divergence="reverse_kl"))
    drawn = torch.tensor([one_token(q, t, sampled, token)[1] for token in range(3)])
    assert (torch.tensor(q) @ drawn).tolist() == pytest.approx(one_token(q, t, exact)[1], abs=1e-6)


def reward(advantage, old=None, temperature=1.0, **changes):
    settings = GrpoConfig(objective="grpo", learning_rate=1e-3, **changes)
    old_T = None if old is None else torch.tensor([old]).log()
    return partial(
        grpo,
        settings=settings,
        advantages_T=torch.tensor([advantage]),
        old_logprobs_T=old_T,
        temperature=temperature,
    )


def test_grpo_on_policy_is_the_policy_gradient():
    loss, gradient = one_token([0.5, 0.5], None, reward(2.0))
    assert loss == pytest.approx(-2.0)  # r = 1
    assert gradient == pytest.approx([-1.0, 1.0])  # -A (onehot - q)


@pytest.mark.parametrize(
    ("advantage", "old", "loss", "slope"),
    [
        # r = 0.5 / old; bounds 0.8 and 1.3; slope is d loss / d log q
        (1.0, 0.45, -1.111111, -1.111111),  # r = 1.11 inside: -r A
        (1.0, 0.25, -1.3, 0.0),  # r = 2 above, A > 0: clipped
        (-1.0, 0.25, 2.0, 2.0),  # r = 2 above, A < 0: the pessimistic side, not clipped
        (-1.0, 1.0, 0.8, 0.0),  # r = 0.5 below, A < 0: clipped
        (1.0, 1.0, -0.5, -0.5),  # r = 0.5 below, A > 0: not clipped
    ],
)
def test_grpo_clips_on_the_pessimistic_side_only(advantage, old, loss, slope):
    objective = reward(advantage, old, clip_low=0.2, clip_high=0.3)
    found, gradient = one_token([0.5, 0.5], None, objective)
    assert found == pytest.approx(loss, abs=1e-6)
    assert gradient == pytest.approx([slope / 2, -slope / 2], abs=1e-6)


def test_grpo_adds_the_kl_to_the_reference():
    # d = ln(3/4) - ln(1/2) = 0.405465: e^d - d - 1 = 0.094535, slope 1 - e^d = -1/2
    loss, gradient = one_token([0.5, 0.5], [0.75, 0.25], reward(0.0, kl_coefficient=0.1))
    assert loss == pytest.approx(0.0094535, abs=1e-6)
    assert gradient == pytest.approx([-0.025, 0.025], abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "loss", "slope"),
    [
        (0.0, -1.0, -1.0),  # r = 1: -A, slope -A
        # reference softmax(ln (1/2, 1/2) / 2) = (1/2, 1/2), d = ln(1/2) - ln(2/3) = -0.287682:
        # e^d - d - 1 = 0.037682, slope 1 - e^d = 1/4
        (2.0, -1.0 + 2 * 0.037682, -1.0 + 2 * 0.25),
    ],
)
def test_grpo_is_of_the_distribution_that_was_sampled_from(kl, loss, slope):
    # logits ln (4/5, 1/5) at temperature 2: p = (2, 1) / 3; gradient slope (onehot - p) / 2
    objective = reward(1.0, temperature=2.0, kl_coefficient=kl)
    found, gradient = one_token([0.8, 0.2], [0.5, 0.5], objective)
    assert found == pytest.approx(loss, abs=1e-6)
    assert gradient == pytest.approx([slope / 6, -slope / 6], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_expected_gradient_of_grpo_is_that_of_the_expected_reward(temperature):
    """At the sampling temperature: E[r] = Σ p r has the gradient p (r - E[r]) / temperature."""
    q, rewards = [0.5, 0.3, 0.2], torch.tensor([1.0, 0.0, -2.0])
    p = torch.softmax(torch.tensor(q).log() / temperature, -1)
    drawn = torch.tensor(
        [one_token(q, None, reward(rewards[i], None, temperature), i)[1] for i in range(3)]
    )
    expected = -p * (rewards - p @ rewards) / temperature
    torch.testing.assert_close(p @ drawn, expected)


def test_cross_entropy_has_gradient_student_minus_one_hot():
    loss, gradient = one_token([0.25, 0.75], None, cross_entropy)
    assert loss == pytest.approx(1.386294, abs=2e-6)  # ln 4
    assert gradient == pytest.approx([-0.75, 0.75])


ADVANTAGES, OLD = torch.tensor([1.0, -1.0, 2.0, -0.5, 0.3]), torch.linspace(-3, -1, 5)
PENALISED = GrpoConfig(objective="grpo", learning_rate=1e-3, kl_coefficient=0.3)


@pytest.mark.parametrize(
    "objective",
    [
        cross_entropy,
        partial(cross_entropy, temperature=1.7),
        partial(grpo, settings=PENALISED, advantages_T=ADVANTAGES, old_logprobs_T=OLD),
        partial(
            grpo,
            settings=PENALISED,
            advantages_T=ADVANTAGES,
            old_logprobs_T=OLD,
            temperature=1.7,
        ),
    ],
    ids=["cross-entropy", "at a temperature", "GRPO", "GRPO at a temperature"],
)
def test_gradients_on_sampled_tokens_are_those_of_finite_differences(objective):
    drawn = torch.Generator().manual_seed(1)
    hidden, weight, other = (
        torch.randn(shape, generator=drawn, dtype=torch.double).requires_grad_()
        for shape in ((5, 3), (7, 3), (5, 3))
    )
    tokens_T, weights_T = torch.tensor([6, 0, 3, 3, 1]), torch.linspace(0.1, 0.5, 5).double()
    teacher = [HeadInput(other.detach(), Head(weight.detach().clone()))]

    def loss(hidden_TD, weight_VD):
        student = HeadInput(hidden_TD, Head(weight_VD))
        with chunks_of(2):
            total, *_ = chunked_loss(student, teacher, tokens_T, weights_T, objective)
        return 2 * total  # a slope of 1 is for one backward pass only, and gradcheck makes two

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_agrees_with_torch_cross_entropy():
    def theirs(student, _, tokens_T):
        return torch.nn.functional.cross_entropy(student, tokens_T)

    assert_agree(both(cross_entropy, theirs))


def test_group_advantages_by_hand():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0] * 4, [0.0] * 4])
    advantages_PG = group_advantages(rewards_PG)
    # mean 1/4, unbiased deviation sqrt((9 + 3) / 16 / 3) = 1/2
    assert advantages_PG[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert advantages_PG[1:].abs().max() == 0


def test_equal_rewards_that_no_float_holds_exactly_are_silent():
    assert group_advantages(torch.full((1, 3), 0.1)).tolist() == [[0, 0, 0]]


@pytest.fixture(scope="module")
def trl():
    """TRL's own loss functions."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.gkd import GKDTrainer
        from trl.experimental.sdpo import SDPOTrainer, loss_utils
    return SimpleNamespace(gkd=GKDTrainer, sdpo=SDPOTrainer, loss_utils=loss_utils)


def both(objective, theirs, weights_T=None):
    """Loss and hidden gradient, ours chunked and theirs from full logits of the same states."""
    drawn = torch.Generator().manual_seed(0)
    hidden, other, weight = (
        torch.randn(shape, generator=drawn) for shape in ((T, D), (T, D), (V, D))
    )
    tokens_T = torch.randint(V, (T,), generator=drawn)
    weights_T = torch.full((T,), 1 / T) if weights_T is None else weights_T
    head = Head(weight.requires_grad_())
    student, teacher = HeadInput(hidden.requires_grad_(), head), Head(weight.detach())
    with chunks_of(5):
        ours, *_ = chunked_loss(
            student, [HeadInput(other, teacher)], tokens_T, weights_T, objective
        )
    expected = theirs(hidden @ weight.T, (other @ weight.T).detach(), tokens_T)
    return [(v, *torch.autograd.grad(v, (hidden, weight))) for v in (ours, expected)]


def assert_agree(pair):
    for ours, theirs in zip(*pair, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("beta", "changes"),
    [
        (0.0, {"divergence": "forward_kl"}),
        (1.0, {"divergence": "reverse_kl"}),
        (0.3, {"divergence": "jsd", "beta": 0.3}),
    ],
)
def test_agrees_with_trl_gkd(trl, beta, changes, temperature):
    objective = partial(distillation, settings=distill(temperature=temperature, **changes))

    def theirs(student, teacher, _):
        return trl.gkd.generalized_jsd_loss(
            student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
        ) / T  # fmt: skip

    assert_agree(both(objective, theirs))


@pytest.mark.parametrize(
    ("alpha", "changes"),
    [
        (0.0, {"divergence": "forward_kl"}),
        (1.0, {"divergence": "reverse_kl"}),
        (0.4, {"divergence": "jsd", "beta": 0.4}),
    ],
)
def test_agrees_with_trl_sdpo_on_a_student_support_with_tail(trl, alpha, changes):
    objective = partial(distillation, settings=distill(support="student", top_k=7, **changes))

    def theirs(student, teacher, _):
        return trl.loss_utils.compute_topk_self_distillation_loss(
            student.double(), teacher.double(),  # in float32 TRL's tail, 1 - sum, loses digits
            distillation_topk=7, distillation_alpha=alpha, distillation_add_tail=True,
        ).mean().float()  # fmt: skip

    assert_agree(both(objective, theirs))


def test_agrees_with_trl_sdpo_on_the_sampled_token(trl):
    objective = partial(distillation, settings=distill(divergence="policy_gradient"))

    def theirs(student, teacher, tokens_T):
        return trl.loss_utils.compute_sampled_token_self_distillation_loss(
            student, teacher, tokens_T, distillation_alpha=1.0
        ).mean()

    assert_agree(both(objective, theirs))


@pytest.mark.parametrize("temperature", [1.0, 1.1])
@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_agrees_with_trl_grpo_that_reuses_a_batch(trl, normalise, temperature):
    lengths = [2, 4, 6]  # three rollouts of the twelve tokens
    length_T = torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))
    advantages_N, old_T = torch.tensor([1.0, -0.7, 0.2]), -3 - torch.arange(T) / 10
    settings = GrpoConfig(objective="grpo", learning_rate=1e-3, normalise=normalise, clip_high=0.3)
    advantages_T = advantages_N.repeat_interleave(torch.tensor(lengths))
    objective = partial(
        grpo,
        settings=settings,
        advantages_T=advantages_T,
        old_logprobs_T=old_T,
        temperature=temperature,
    )

    def theirs(student, _, tokens_T):
        def padded(values):
            pieces = torch.split(values, lengths)
            return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)

        trainer = SimpleNamespace(
            importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.3,
            loss_type={"token": "dapo", "sequence": "grpo"}[normalise],
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(gather=lambda value: value),
            _metrics={"train": {"self_distillation/policy_loss": []}},
        )  # fmt: skip
        inputs = {
            "completion_ids": padded(tokens_T), "completion_mask": padded(torch.ones(T)),
            "old_per_token_logps": padded(old_T), "advantages": advantages_N,
        }  # fmt: skip
        logits = padded(student / temperature)  # as its _forward_logits gives them
        return trl.sdpo._compute_policy_loss(trainer, inputs, logits)

    weights_T = torch.full((T,), 1 / T) if normalise == "token" else 1 / (3 * length_T)
    assert_agree(both(objective, theirs, weights_T))
