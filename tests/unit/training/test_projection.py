from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from sdcore.config import DistillConfig
from sdcore.training.losses import distillation
from sdcore.training.projection import Head, HeadInput, chunked_loss, token_scores
from tests.helpers.chunks import chunks_of

T, D, V = 5, 3, 7
HEADS = [{"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 3.0}]


def settings(**changes):
    return DistillConfig(objective="distill", context="none", learning_rate=1e-3, **changes)


def inputs(dtype=torch.float64, seed=0):
    """Student's hidden states, head and bias, and the teacher's."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = ((T, D), (V, D), (V,), (T, D), (V, D))
    return [torch.randn(shape, generator=drawn, dtype=dtype) for shape in shapes]


def tokens():
    return torch.arange(T) % V, torch.linspace(0.1, 0.7, T)


def loss_of(hidden, weight, bias, teacher, changes, head, rows=2):
    tokens_T, weights_T = tokens()
    objective = partial(distillation, settings=settings(**changes))
    student = HeadInput(hidden, Head(weight, bias, **head))
    with chunks_of(rows):
        return chunked_loss(student, teacher, tokens_T, weights_T, objective)


CASES = [
    {"divergence": divergence, **more}
    for divergence in ("forward_kl", "reverse_kl", "jsd")
    for more in (
        {},
        {"temperature": 0.7},
        {"support": "teacher", "top_k": 3},
        {"support": "student", "top_k": 3, "temperature": 1.3},
        {"support": "student", "top_k": V},
    )
]


@pytest.mark.parametrize(
    ("changes", "head"), [*((case, {}) for case in CASES), *(({}, head) for head in HEADS)], ids=str
)
def test_gradients_are_exact(changes, head):
    hidden, weight, bias, other_hidden, other_weight = inputs()
    teacher = [HeadInput(other_hidden, Head(other_weight, **head))]
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    # Twice the loss, because a gradient that needs no scaling is good for one backward pass only.
    assert gradcheck(lambda h, w, b: 2 * loss_of(h, w, b, teacher, changes, head)[0], leaves)


def naive_forward_kl(hidden, weight, other_hidden, other_weight, weights_T):
    log_q = torch.log_softmax(hidden @ weight.T, -1)
    log_t = torch.log_softmax(other_hidden @ other_weight.T, -1)
    return ((log_t.exp() * (log_t - log_q)).sum(-1) * weights_T).sum()


@pytest.mark.parametrize("rows", [1, 2, T, 100])
def test_any_chunking_gives_the_naive_loss_and_gradients(rows):
    hidden, weight, _, other_hidden, other_weight = inputs(torch.float32)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    expected = naive_forward_kl(*leaves, other_hidden, other_weight, tokens()[1])
    teacher = [HeadInput(other_hidden, Head(other_weight))]
    loss, loss_T, _ = loss_of(*leaves, None, teacher, {}, {}, rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss_T @ tokens()[1], expected, rtol=1e-5, atol=0)
    for ours, naive in zip(
        torch.autograd.grad(3 * loss, leaves), torch.autograd.grad(3 * expected, leaves)
    ):
        torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-6)


def test_tied_head_gets_both_parts_of_its_gradient():
    _, weight, _, other_hidden, other_weight = inputs(torch.float32)
    weight.requires_grad_()
    ids_T = torch.arange(T)
    teacher = [HeadInput(other_hidden, Head(other_weight))]
    loss, *_ = loss_of(weight[ids_T], weight, None, teacher, {}, {})
    expected = naive_forward_kl(weight[ids_T], weight, other_hidden, other_weight, tokens()[1])
    ours, naive = (torch.autograd.grad(value, weight)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-6)


def test_frozen_head_needs_no_gradient():
    hidden, weight, _, other_hidden, other_weight = inputs(torch.float32)
    teacher = [HeadInput(other_hidden, Head(other_weight))]
    loss, *_ = loss_of(hidden.requires_grad_(), weight, None, teacher, {}, {})
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_scores_by_hand():
    # One token; logits are the hidden state itself: q = (1/2, 1/4, 1/4), t = (1/4, 1/2, 1/4).
    q, t = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    head, token_T = Head(torch.eye(3)), torch.tensor([1])
    scores = token_scores(HeadInput(q.log(), head), [HeadInput(t.log(), head)], token_T)
    assert scores.student_logprob_T.item() == pytest.approx(-1.386294)  # ln 1/4
    assert scores.teacher_logprob_T.item() == pytest.approx(-0.693147)  # ln 1/2
    assert scores.entropy_T.item() == pytest.approx(1.039721)  # 1/2 ln 2 + 1/2 ln 4
    assert scores.kl_T.item() == pytest.approx(0.173287, abs=1e-6)  # 1/4 ln 1/2 + 1/2 ln 2


def test_scores_come_with_the_loss_and_ignore_its_temperature():
    hidden, weight, _, other_hidden, other_weight = inputs(torch.float32)
    teacher = [HeadInput(other_hidden, Head(other_weight))]
    _, _, scores = loss_of(hidden, weight, None, teacher, {"temperature": 3.0}, {})
    alone = token_scores(HeadInput(hidden, Head(weight)), teacher, tokens()[0])
    for ours, expected in zip(scores, alone, strict=True):
        torch.testing.assert_close(ours, expected)


def test_teacher_of_two_views_mixes_logits():
    hidden, weight, _, other_hidden, other_weight = inputs(torch.float32)
    views = [
        HeadInput(hidden, Head(weight), 0.75),
        HeadInput(other_hidden, Head(other_weight), 0.25),
    ]
    mixed = 0.75 * hidden @ weight.T + 0.25 * other_hidden @ other_weight.T
    scores = token_scores(HeadInput(hidden, Head(weight)), views, tokens()[0])
    expected = torch.log_softmax(mixed, -1)[torch.arange(T), tokens()[0]]
    torch.testing.assert_close(scores.teacher_logprob_T, expected)


def test_bfloat16_is_close_to_float32():
    exact, rough = [], []
    for found, dtype in ((exact, torch.float32), (rough, torch.bfloat16)):
        hidden, weight, _, other_hidden, other_weight = (
            tensor.to(torch.bfloat16).to(dtype) for tensor in inputs(torch.float32)
        )
        teacher = [HeadInput(other_hidden, Head(other_weight))]
        loss, *_ = loss_of(hidden.requires_grad_(), weight.requires_grad_(), None, teacher, {}, {})
        loss.backward()
        assert hidden.grad.dtype == weight.grad.dtype == dtype
        found += [loss.detach(), hidden.grad.float(), weight.grad.float()]
    for ours, expected in zip(rough, exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.02)


def test_autocast_multiplies_in_bfloat16_and_trains_in_float32():
    hidden, weight, _, other_hidden, other_weight = inputs(torch.float32)
    weight.requires_grad_()
    teacher = [HeadInput(other_hidden, Head(other_weight))]
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = loss_of(hidden, weight, None, teacher, {}, {})
    loss.backward()
    exact, *_ = loss_of(hidden, weight, None, teacher, {}, {})
    assert weight.grad.dtype == torch.float32
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


def masked(tensors, columns):
    """Logits of student and teacher with the columns at -inf, and a head that passes them on."""
    return [tensor.index_fill(1, torch.tensor(columns), -torch.inf) for tensor in tensors]


def divergence_of(logits_TV, teacher_TV, changes):
    """Losses [T], gradients by the logits [T, V] and scores of given logits."""
    logits_TV = logits_TV.clone().requires_grad_()
    bias = torch.zeros(logits_TV.shape[1], dtype=logits_TV.dtype)

    class Given(Head):
        def logits(self, hidden_ND, out=None):
            return hidden_ND.clone()

    head = Given(torch.eye(logits_TV.shape[1], dtype=logits_TV.dtype), bias)
    size = len(logits_TV)
    objective = partial(distillation, settings=settings(**changes))
    loss, loss_T, scores = chunked_loss(
        HeadInput(logits_TV, head), [HeadInput(teacher_TV, head)],
        torch.zeros(size, dtype=torch.long), torch.ones(size), objective,
    )  # fmt: skip
    loss.backward()
    return loss_T, logits_TV.grad, scores


MASKED = [case for case in CASES if case.get("top_k") != V]


@pytest.mark.parametrize("changes", [*MASKED, {"divergence": "policy_gradient"}], ids=str)
def test_a_masked_vocabulary_is_a_smaller_vocabulary(changes):
    drawn = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(T, V, generator=drawn, dtype=torch.float64) for _ in "st")
    expected = divergence_of(student[:, :-2], teacher[:, :-2], changes)
    loss_T, gradient_TV, scores = divergence_of(
        *masked((student, teacher), [V - 2, V - 1]), changes
    )
    torch.testing.assert_close(loss_T, expected[0])
    torch.testing.assert_close(gradient_TV[:, :-2], expected[1])
    assert (gradient_TV[:, -2:] == 0).all()
    for ours, theirs in zip(scores, expected[2], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("changes", [*MASKED, {"divergence": "policy_gradient"}], ids=str)
@pytest.mark.parametrize("side", ["student", "teacher", "more than the support"])
def test_a_token_that_one_side_masks_gives_finite_numbers(changes, side):
    drawn = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(T, V, generator=drawn, dtype=torch.float64) for _ in "st")
    columns = [1, 2, 3, 4, 5] if side == "more than the support" else [1]
    if side != "teacher":
        (student,) = masked((student,), columns)
    if side != "student":
        (teacher,) = masked((teacher,), columns)
    loss_T, gradient_TV, scores = divergence_of(student, teacher, changes)
    for values in (loss_T, gradient_TV, *scores):
        assert values.isfinite().all()


def test_a_token_that_the_student_alone_masks_counts_as_the_floor():
    # q = (1, 0), t = (3/4, 1/4): KL = 3/4 ln 3/4 + 1/4 (ln 1/4 + 10,000) = 2,499.4377
    student, teacher = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[3.0, 1.0]]).log()
    loss_T, _, scores = divergence_of(student, teacher, {"divergence": "forward_kl"})
    assert loss_T.item() == scores.kl_T.item() == pytest.approx(2499.4377)
    assert scores.entropy_T.item() == 0
