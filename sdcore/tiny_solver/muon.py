"""Muon: momentum whose update is made orthogonal (arXiv 2502.16982), for small matrices on a CPU.

`torch.optim.Muon` orthogonalises in bfloat16, which takes longer than the rest of a step on
processors without bfloat16 arithmetic; this one does it in the dtype of the weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # drives all singular values to about 1 in five rounds
ROUNDS = 5
MOMENTUM = 0.95  # decay of the averaged gradient, applied in Nesterov's form
WEIGHT_DECAY = 0.05  # decoupled, times the learning rate


class Muon:
    """Optimizer of the weight matrices between embedding and head.

    Args:
        matrices: two-dimensional weights.
    """

    def __init__(self, matrices: Iterable[nn.Parameter]) -> None:
        self._matrices = list(matrices)
        self._averages = [torch.zeros_like(matrix) for matrix in self._matrices]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Use the gradients up in one step."""
        for matrix, average in zip(self._matrices, self._averages):
            if matrix.grad is None:
                continue
            average.lerp_(matrix.grad, 1 - MOMENTUM)
            update = orthogonalise(matrix.grad.lerp(average, MOMENTUM))
            matrix.mul_(1 - learning_rate * WEIGHT_DECAY).sub_(learning_rate * update)
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
