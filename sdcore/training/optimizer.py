"""AdamW with clipping and a learning-rate schedule; the state is moments and a step number."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdcore.config import TrainingConfig
from sdcore.distributed import collectives

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, total_steps: int, peak: float, training: TrainingConfig) -> float:
    """Return the rate of a step, from 0: linear warm-up to the peak, then the schedule to 0.

    A warm-up longer than all steps takes all of them, so that the last one is at the peak.
    """
    rising = min(training.warmup_steps, total_steps)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, total_steps - rising)
    match training.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * max(0.0, 1 - progress)
        case "cosine":
            return peak * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class Optimizer:
    """AdamW (arXiv 1711.05101) on named weights; weight decay is for matrices only."""

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        peak: float,
        training: TrainingConfig,
        total_steps: int,
    ) -> None:
        self.step = 0
        self._weights, self._peak = weights, peak
        self._training, self._total_steps = training, total_steps
        matrices = [weight for weight in weights.values() if weight.ndim > 1]
        vectors = [weight for weight in weights.values() if weight.ndim < 2]
        decays = ((matrices, training.weight_decay), (vectors, 0.0))
        groups = [{"params": p, "weight_decay": decay} for p, decay in decays if p]
        self._adamw = torch.optim.AdamW(groups, lr=peak, fused=True)

    def clip(self) -> float:
        """Clip the gradient to the maximal norm; return the norm before clipping."""
        limit = self._training.max_grad_norm
        return float(collectives.whole(nn.utils.clip_grad_norm_(self._weights.values(), limit)))

    def apply(self) -> float:
        """Take one step with the gradient and drop it; return the step's learning rate."""
        rate = learning_rate(self.step, self._total_steps, self._peak, self._training)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.discard()
        self.step += 1
        return rate

    def discard(self) -> None:
        """Drop the gradient."""
        self._adamw.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return the moments by name, on the first rank; empty before the first step."""
        if not self.step:
            return {}
        return collectives.gathered(
            (f"{moment}/{name}", self._adamw.state[weight][moment])
            for name, weight in self._weights.items()
            for moment in MOMENTS
        )

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Restore what `state` returned at that step."""
        self.step = step
        self._adamw.state.clear()
        for name, weight in self._weights.items() if step else ():
            moments = {m: collectives.alike(state[f"{m}/{name}"], weight.detach()) for m in MOMENTS}
            count = torch.tensor(float(step), device=weight.device)
            self._adamw.state[weight] = {"step": count, **moments}
