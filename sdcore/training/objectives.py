"""Objectives: what differs between the ways to train a condition, one class each.

To add one, derive a settings model from `sdcore.config.ConditionSettings` and a class from
`Objective`, and decorate the class with `@sdcore.config.objective(MySettings)`. A condition refers
to it as `objective = "my_module:MyObjective"`.

Axes: P questions, G rollouts of a group, N tokens of a chunk, T tokens of a micro-batch,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sdcore.config import (
    OBJECTIVES,
    ConditionSettings,
    DistillConfig,
    GrpoConfig,
    TeacherConfig,
    WarmupConfig,
)
from sdcore.errors import TrainingError
from sdcore.registry import loaded
from sdcore.training import batches, losses
from sdcore.training.batches import Example
from sdcore.training.projection import Chunk, ChunkLoss, TokenScores

S = TypeVar("S", bound=ConditionSettings | WarmupConfig)


class Objective(Generic[S]):
    """One way to train; the defaults are those of supervised learning on the responses.

    Attributes:
        settings: the condition's.
        temperature: sampling temperature of the rollouts.
    """

    def __init__(self, settings: S, temperature: float = 1.0) -> None:
        self.settings, self.temperature = settings, temperature

    @property
    def teacher(self) -> TeacherConfig | None:
        """Weights that score the responses beside the student; None if no other are needed."""
        return None

    @property
    def prompted(self) -> bool:
        """The teacher scores the response after its own prompt, the one with a context."""
        return getattr(self.settings, "teacher_context", None) is not None

    @property
    def by_sequence(self) -> bool:
        """The loss is the mean over sequences of their means, not the mean over tokens."""
        return False

    @property
    def remembers(self) -> bool:
        """Several steps on the same rollouts need log-probs that the trainer computes."""
        return False

    def advantages(self, rewards_PG: Tensor) -> Tensor | None:
        """Return the advantage [P, G] of each rollout, or None if rewards play no part."""
        return None

    def require(self, examples: Sequence[Example]) -> None:
        """Refuse examples that lack what the loss reads.

        Every rank is shown all examples of a step before it computes its part of them, so that none
        waits for another that has failed.

        Raises:
            TrainingError: an example lacks something.
        """

    def loss(self, examples: Sequence[Example], device: torch.device) -> ChunkLoss:
        """Return the loss of a micro-batch, as a function of a chunk of its tokens."""
        raise NotImplementedError

    def advantage(self, examples: Sequence[Example], scores: TokenScores) -> Tensor:
        """Return what the table `token_signals` keeps as the advantage of each token, [T]."""
        return torch.ones_like(scores.student_logprob_T)


class Distillation(Objective[DistillConfig]):
    """Divergence between the student and the teacher, which is shown the context."""

    @property
    def teacher(self) -> TeacherConfig:
        """The self-teacher."""
        return self.settings.teacher

    def loss(self, examples: Sequence[Example], device: torch.device) -> ChunkLoss:
        """The divergence of the settings."""
        return losses.Distillation(self.settings)

    def advantage(self, examples: Sequence[Example], scores: TokenScores) -> Tensor:
        """Teacher minus student log-prob, in nats."""
        return against_teacher(scores)


class Grpo(Objective[GrpoConfig]):
    """The clipped surrogate on group-relative advantages."""

    @property
    def teacher(self) -> TeacherConfig | None:
        """The initial policy, as the reference of the KL, if the KL counts."""
        return TeacherConfig() if self.settings.kl_coefficient else None

    @property
    def by_sequence(self) -> bool:
        """As the settings say."""
        return self.settings.normalise == "sequence"

    @property
    def remembers(self) -> bool:
        """At another temperature than 1 the sampler's log-probs are not those of the ratio."""
        return self.temperature != 1

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Rewards relative to their group."""
        return losses.group_advantages(rewards_PG)

    def require(self, examples: Sequence[Example]) -> None:
        """Each rollout has an advantage."""
        batches.advantages(examples)

    def loss(self, examples: Sequence[Example], device: torch.device) -> ChunkLoss:
        """The surrogate, with the old policy's log-probs where examples have them."""
        stored = batches.old_logprobs if self.remembers else batches.sampled_logprobs
        old_T = stored(examples)
        return partial(
            losses.grpo,
            settings=self.settings,
            advantages_T=batches.advantages(examples).to(device),
            old_logprobs_T=None if old_T is None else old_T.to(device),
            temperature=self.temperature,
        )

    def advantage(self, examples: Sequence[Example], scores: TokenScores) -> Tensor:
        """The rollout's advantage."""
        return batches.advantages(examples).to(scores.student_logprob_T.device)


class Supervised(Objective[WarmupConfig]):
    """Cross-entropy of given responses: the warm-up."""

    def loss(self, examples: Sequence[Example], device: torch.device) -> ChunkLoss:
        """−log q(y) of each token."""
        return losses.cross_entropy


def objective_of(
    settings: ConditionSettings | WarmupConfig, temperature: float = 1.0
) -> Objective[Any]:
    """Return the objective that settings belong to.

    Raises:
        TrainingError: what is registered under the name is no subclass of `Objective`.
    """
    if isinstance(settings, WarmupConfig):
        return Supervised(settings, temperature)
    implementation = loaded(OBJECTIVES[settings.objective].implementation)
    if not (isinstance(implementation, type) and issubclass(implementation, Objective)):
        raise TrainingError(
            "not an objective",
            got=implementation,
            expected="a subclass of sdcore.training.objectives.Objective",
            where=settings.objective,
        )
    return implementation(settings, temperature)


def group_signals(
    objective: Objective[Any], rewards: Sequence[float]
) -> tuple[list[float | None], int]:
    """Return the advantage of each rollout, and how many groups have equal rewards.

    Args:
        objective: of the condition.
        rewards: of rollouts, those of a question side by side.

    Returns:
        Advantages, None if the objective has none; the count is then 0.
    """
    rewards_PG = torch.tensor(rewards, dtype=torch.float32).view(-1, objective.settings.group_size)
    advantages_PG = objective.advantages(rewards_PG)
    if advantages_PG is None:
        return [None] * len(rewards), 0
    silent_P = (rewards_PG == rewards_PG[:, :1]).all(1)
    return advantages_PG.flatten().tolist(), int(silent_P.sum())


def against_teacher(scores: TokenScores) -> Tensor:
    """Teacher minus student log-prob of each token, in nats.

    Raises:
        TrainingError: the objective has no teacher.
    """
    if scores.teacher_logprob_T is None:
        raise TrainingError("the advantage against a teacher needs one", got="no teacher")
    return scores.teacher_logprob_T - scores.student_logprob_T


def differentiated(loss: Callable[[Tensor, Chunk], Tensor]) -> ChunkLoss:
    """Return a chunk's loss whose gradient autograd computes, in more memory than by hand.

    Args:
        loss: maps the student's log-probs [N, V] and the chunk to a loss per token [N].
    """

    def chunk_loss(chunk: Chunk) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            # Log-probs are logits too: their log-softmax is themselves, so that the gradient by
            # them is the gradient by the logits.
            logits_NV = chunk.log_q_NV.detach().clone().requires_grad_(True)
            loss_N = loss(torch.log_softmax(logits_NV, -1), chunk)
            (gradient_NV,) = torch.autograd.grad(loss_N.sum(), logits_NV)
        return loss_N.detach(), gradient_NV

    return chunk_loss
