"""The GPU's kernel through Triton's interpreter, against PyTorch in float64."""

import importlib
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from sdcore.config import DistillConfig
from sdcore.training import projection
from sdcore.training.divergences import DIVERGENCES, Whole
from sdcore.training.losses import Distillation, distillation
from sdcore.training.projection import Head, HeadInput, chunked_loss, token_scores
from tests.helpers.chunks import chunks_of

pytest.importorskip("triton", reason="no Triton: run `make triton`")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("a GPU compiles the kernel: see tests/gpu", allow_module_level=True)

N, D, BLOCK = 2, 4, 128
V = BLOCK + 17
CASES = [{"divergence": name} for name in DIVERGENCES] + [
    {"divergence": "jsd", "beta": 0.1},
    {"divergence": "forward_kl", "clip": "token", "clip_value": 0.3},
    {"divergence": "reverse_kl", "clip": "token", "clip_value": 0.3},
]


@pytest.fixture(scope="module")
def kernels():
    module = importlib.import_module("sdcore.training.kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", BLOCK)
        yield module


@pytest.fixture
def on_gpu(kernels, monkeypatch):
    """Chunks go to the kernel, as on a GPU."""
    monkeypatch.setattr(projection, "has_kernels", lambda student: True)


def drawn(vocabulary, dtype=torch.float32, seed=0):
    """Student's hidden states and head, the teacher's, and tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, D), (vocabulary, D), (N, D), (vocabulary, D))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return *tensors, torch.randint(vocabulary, (N,), generator=generator)


def settings(**changes):
    return DistillConfig(objective="distill", context="none", learning_rate=1e-3, **changes)


def results(inputs, loss, head=None, dtype=None):
    """Loss of each token, scores, and gradients of hidden states and head."""
    *tensors, tokens_T = inputs
    leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]
    hidden, weight, other_hidden, other_weight = leaves
    weights_T = torch.tensor([0.5, 0.0])  # one token counts for nothing
    sides = (
        HeadInput(hidden, Head(weight, **(head or {}))),
        [HeadInput(other_hidden.detach(), Head(other_weight.detach(), **(head or {})))],
    )
    with chunks_of(1):
        total, loss_T, scores = chunked_loss(*sides, tokens_T, weights_T, loss)
    total.backward()
    return [loss_T, *scores, hidden.grad, weight.grad]


def reference(inputs, changes, head=None):
    return results(inputs, partial(distillation, settings=settings(**changes)), head, torch.float64)


def close(ours, exact, rtol=2e-5, atol=2e-6):
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("changes", "vocabulary"), [*((case, V) for case in CASES), ({}, BLOCK), ({}, 5)], ids=str
)
def test_loss_scores_and_gradients_are_those_of_float64(on_gpu, changes, vocabulary):
    inputs = drawn(vocabulary)
    exact = reference(inputs, changes)
    ours = results(inputs, Distillation(settings(**changes)))
    close(ours, exact)
    assert (ours[-2][1] == 0).all(), "a token of weight 0 has no gradient"
    if changes.get("clip"):
        assert exact[0].max() == pytest.approx(0.3), "a loss was clipped"


@pytest.mark.parametrize("head", [{"scale": 0.3}, {"scale": 1.7, "softcap": 3.0}], ids=str)
def test_a_head_with_scale_and_soft_cap(on_gpu, head):
    inputs = drawn(V)
    close(
        results(inputs, Distillation(settings()), head),
        reference(inputs, {}, head),
    )


def test_a_bfloat16_gradient(kernels):
    student, teacher = torch.randn(2, N, V, generator=torch.Generator().manual_seed(1))
    given = student, teacher, torch.tensor([0, V - 1]), Whole("jsd")
    rough, exact = (torch.empty(N, V, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for gradient in (rough, exact):
        kernels.divergence(*given, gradient)
    # Not to the last bit: the interpreter cuts the digits off where a GPU rounds them.
    torch.testing.assert_close(rough.float(), exact, rtol=2**-7, atol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_may_take_the_place_of_the_logits(kernels, name):
    student, teacher = torch.randn(2, N, V, generator=torch.Generator().manual_seed(1))
    given = teacher, torch.tensor([0, V - 1]), Whole(name)
    apart = torch.empty(N, V)
    loss_N, scores = kernels.divergence(student, *given, apart)
    same_N, same_scores = kernels.divergence(student, *given, student)
    for ours, theirs in zip((same_N, *same_scores, student), (loss_N, *scores, apart), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("held", [1, 3 * V, 100 * V])
def test_gradients_that_are_held_for_one_product_add_up(on_gpu, monkeypatch, held):
    monkeypatch.setattr(projection, "HELD", held)  # for one chunk of a token, for three, for all
    generator = torch.Generator().manual_seed(3)
    hidden, other = torch.randn(2, 7, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    ids_T, weights_T = torch.arange(7), torch.linspace(0.1, 0.7, 7)
    made = []
    for dtype, loss in (
        (torch.float32, Distillation(settings())),
        (torch.float64, partial(distillation, settings=settings())),
    ):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
        sides = (
            HeadInput(leaves[0], Head(leaves[1])),
            [HeadInput(other.to(dtype), Head(weight.to(dtype)))],
        )
        with chunks_of(1):
            total, loss_T, scores = chunked_loss(*sides, ids_T, weights_T, loss)
        (3 * total).backward()
        made.append([loss_T, *scores, *(leaf.grad for leaf in leaves)])
    close(*made)


def test_scores_alone(on_gpu):
    hidden, weight, other_hidden, other_weight, tokens_T = drawn(V)
    sides = [HeadInput(hidden, Head(weight)), [HeadInput(other_hidden, Head(other_weight))]]
    exact = reference((hidden, weight, other_hidden, other_weight, tokens_T), {})[1:5]
    close(token_scores(*sides, tokens_T), exact)


class Given(Head):
    """The hidden states are the logits."""

    def logits(self, hidden_ND, out=None):
        return hidden_ND.clone()


def of_logits(student, teacher, loss):
    """Losses, scores and gradient of given logits."""
    student = student.clone().requires_grad_()
    head = Given(torch.eye(student.shape[1], dtype=student.dtype))
    total, loss_T, scores = chunked_loss(
        HeadInput(student, head), [HeadInput(teacher, head)],
        torch.tensor([1, 0]), torch.ones(2), loss,
    )  # fmt: skip
    total.backward()
    return [loss_T, *scores, student.grad]


EXTREME = {
    "far apart": [[900.0, -900.0] + [0.0] * 98, [-1e4, 1e4] + [3.0] * 98],
    "large and equal": [[5000.0] * 100, [-5000.0] * 100],
    "masked": [[-torch.inf, 1.0] * 50, [2.0, -torch.inf] + [-torch.inf, 0.5] * 49],
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("changes", CASES[:3], ids=str)
def test_extreme_logits(on_gpu, changes, name):
    student = torch.tensor(EXTREME[name])
    teacher = student.flip(0) if name != "masked" else student.roll(2, 1)
    exact = of_logits(
        student.double(), teacher.double(), partial(distillation, settings=settings(**changes))
    )
    ours = of_logits(student, teacher, Distillation(settings(**changes)))
    assert all(each.isfinite().all() for each in ours)
    close(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("changes", CASES[:2], ids=str)
def test_what_is_no_number_stays_none(on_gpu, changes, value):
    student = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    student[0, 70] = value
    with np.errstate(invalid="ignore"):
        loss_T, *_, gradient = of_logits(
            student, torch.zeros(2, 100), Distillation(settings(**changes))
        )
    assert loss_T[0].isnan()
    assert gradient[0].isnan().any()
    assert loss_T[1].isfinite()


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.7}, {"support": "student", "top_k": 3}, {"divergence": "policy_gradient"}],
    ids=str,
)
def test_other_losses_keep_their_own_way(changes):
    assert Distillation(settings(**changes)).whole is None


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sdcore.training import kernels

pointers = {"tokens": "*i64", "gradient": "*bf16"}
numbers = dict.fromkeys(("log_beta", "log_rest", "beta", "clip"), "fp32") | {"V": "i32"}
chosen = {"NAME": sys.argv[1], "WRITTEN": sys.argv[2], "BLOCK": kernels.BLOCK}
names = kernels._rows.arg_names
types = {n: "constexpr" if n in chosen else numbers.get(n, pointers.get(n, "*fp32")) for n in names}
options = {"num_warps": kernels.WARPS}
source = ASTSource(kernels._rows, types, chosen)
print(len(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]))
"""


@pytest.mark.night
@pytest.mark.parametrize(
    ("name", "written"), [("forward_kl", "second pass"), ("jsd", "third pass")]
)
def test_the_kernel_compiles_for_a_gpu(name, written, tmp_path):
    search = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": search}
    environment.pop("TRITON_INTERPRET")
    made = subprocess.run(
        [sys.executable, "-c", COMPILE, name, written],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) > 1000  # bytes of machine code
