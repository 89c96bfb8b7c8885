"""The loss on a GPU, by the compiled kernel, against float64 on the same GPU."""

from functools import partial

import pytest
import torch

from sdcore.config import DistillConfig
from sdcore.training import projection
from sdcore.training.losses import Distillation, distillation
from sdcore.training.projection import Head, HeadInput, chunked_loss, token_scores

TOKENS, WIDTH = 700, 256  # two chunks
VOCABULARIES = [50_021, 151_936]  # a prime, whose rows start at odd addresses, and Qwen3's
CASES = [
    {},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd", "beta": 0.3},
    {"divergence": "jsd", "clip": "token", "clip_value": 0.05},
    {"temperature": 0.7},
]


def settings(**changes):
    return DistillConfig(objective="distill", context="none", learning_rate=1e-3, **changes)


def inputs(vocabulary):
    """Hidden states and heads of student and teacher, whose numbers are exact in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)
    student, teacher = torch.randn(2, TOKENS, WIDTH, generator=generator, device="cuda").bfloat16()
    head = torch.randn(vocabulary, WIDTH, generator=generator, device="cuda") / WIDTH**0.5
    tokens_T = torch.randint(vocabulary, (TOKENS,), generator=generator, device="cuda")
    return student, teacher, head.bfloat16(), tokens_T


def results(given, loss, dtype):
    student, teacher, head, tokens_T = given
    student, head = (tensor.to(dtype, copy=True).requires_grad_() for tensor in (student, head))
    sides = HeadInput(student, Head(head)), [HeadInput(teacher.to(dtype), Head(head.detach()))]
    weights_T = torch.linspace(0, 1, TOKENS, device="cuda")
    total, loss_T, scores = chunked_loss(*sides, tokens_T, weights_T, loss)
    total.backward()
    return loss_T, scores, student.grad, head.grad


def relative(ours, exact):
    """Length of the difference by that of the exact one."""
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "value", "gradient"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 1e-5, 5e-3)]
)
def test_values_and_gradients_are_those_of_float64(changes, vocabulary, dtype, value, gradient):
    given = inputs(vocabulary)
    exact = results(given, partial(distillation, settings=settings(**changes)), torch.float64)
    ours = results(given, Distillation(settings(**changes)), dtype)
    assert relative(ours[0], exact[0]) < value
    for mine, theirs in zip(ours[1], exact[1], strict=True):
        assert relative(mine, theirs) < value
    for mine, theirs in zip(ours[2:], exact[2:], strict=True):
        assert relative(mine, theirs) < gradient


def test_logits_are_not_rounded_before_the_softmax():
    student, teacher, head, tokens_T = inputs(VOCABULARIES[1])
    near = (student.float() + 0.02 * teacher.float()).bfloat16()  # a KL that rounding would drown
    exact, ours = (
        token_scores(
            HeadInput(student.to(dtype), Head(head.to(dtype))),
            [HeadInput(near.to(dtype), Head(head.to(dtype)))],
            tokens_T,
        )
        for dtype in (torch.float64, torch.bfloat16)
    )
    # The log of a sum, about 12, is known to 5e-7 in float32, and the KL is about 2e-4. Logits that
    # were rounded to bfloat16 would be 8e-3 off.
    assert relative(ours.kl_T, exact.kl_T) < 5e-3


def test_memory_stays_within_chunks():
    student, teacher, head, tokens_T = inputs(VOCABULARIES[1])
    sides = HeadInput(student, Head(head)), [HeadInput(teacher, Head(head))]
    student.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    weights_T = torch.ones(TOKENS, device="cuda")
    chunked_loss(*sides, tokens_T, weights_T, Distillation(settings()))[0].backward()
    buffer = 4 * projection.ELEMENTS["cuda"]
    assert torch.cuda.max_memory_allocated() - before < 3 * buffer
