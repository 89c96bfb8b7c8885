"""The same loss by different code: sdcore, TRL, and Liger where it is installed."""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch

from sdcore.config import DistillConfig
from sdcore.training.losses import distillation
from sdcore.training.projection import Head, HeadInput, chunked_loss

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

HIDDEN, VOCABULARY = 576, 32768

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(tokens: int, *, trained: bool) -> Inputs:
    """Student's and teacher's hidden states, the head that they share, and the tokens."""
    drawn = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, tokens, HIDDEN, generator=drawn)
    head = torch.randn(VOCABULARY, HIDDEN, generator=drawn) / HIDDEN**0.5
    token_ids = torch.randint(VOCABULARY, (tokens,), generator=drawn)
    return (
        student.clone().requires_grad_(),
        teacher.clone(),
        head.requires_grad_(trained),
        token_ids,
    )


def ours(given: Inputs) -> Callable[[], float]:
    student, teacher, head, token_ids = given
    settings = DistillConfig(objective="distill", context="none", learning_rate=1e-3)
    objective = partial(distillation, settings=settings)
    weights_T = torch.full((len(token_ids),), 1 / len(token_ids))

    def work() -> float:
        student.grad = head.grad = None
        views = HeadInput(student, Head(head)), [HeadInput(teacher, Head(head.detach()))]
        loss, *_ = chunked_loss(*views, token_ids, weights_T, objective)
        loss.backward()
        return loss.item()

    return work


def trl(given: Inputs) -> Callable[[], float]:
    from trl.experimental.gkd import GKDTrainer

    student, teacher, head, token_ids = given

    def work() -> float:
        student.grad = head.grad = None
        with torch.no_grad():
            teacher_logits = teacher @ head.T
        loss = GKDTrainer.generalized_jsd_loss(
            (student @ head.T)[None], teacher_logits[None], beta=0.0, reduction="sum"
        )
        loss = loss / len(token_ids)
        loss.backward()
        return loss.item()

    return work


PATHS = {"sdcore": ours, "trl": trl}

if find_spec("liger_kernel") and torch.cuda.is_available():
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def liger(given: Inputs) -> Callable[[], float]:
        student, teacher, head, token_ids = (tensor.detach().cuda() for tensor in given)
        student.requires_grad_(), head.requires_grad_(given[2].requires_grad)
        fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)

        def work() -> float:
            student.grad = head.grad = None
            loss = fused(student, head, teacher, head.detach(), token_ids)
            loss.backward()
            return loss.item()

        return work

    PATHS["liger"] = liger
