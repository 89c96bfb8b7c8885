"""Muon: momentum whose update is made orthogonal (arXiv 2502.16982), for small matrices on a CPU.

`torch.optim.Muon` orthogonalises in bfloat16, which takes longer than the rest of a step on
processors without bfloat16 arithmetic; this one does it in the dtype of the weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # drives all singular values to about 1 in five rounds
ROUNDS = 5


class Muon:
    """Optimizer of the weight matrices between embedding and head.

    Args:
        matrices: two-dimensional weights.
        momentum: decay of the averaged gradient, applied in Nesterov's form.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        self._matrices = list(matrices)
        self._averages = [torch.zeros_like(matrix) for matrix in self._matrices]
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Use the gradients up in one step."""
        for matrix, average in zip(self._matrices, self._averages):
            if matrix.grad is None:
                continue
            average.lerp_(matrix.grad, 1 - self._momentum)
            update = orthogonalise(matrix.grad.lerp(average, self._momentum))
            matrix.mul_(1 - learning_rate * self._weight_decay).sub_(learning_rate * update)
            matrix.grad = None


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix with all singular values about 1, by Newton-Schulz iteration."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    a, b, c = QUINTIC
    result: Tensor = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = result @ result.T
        result = a * result + (b * gram + c * gram @ gram) @ result
    return result
