import pytest
import torch
from torch import nn

from sdcore.tiny_solver.muon import Muon, orthogonalise


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((16, 16), (16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.shape == (16,)
        assert values.median() > 0.6
        assert values.max() < 1.3


def test_singular_vectors_are_kept():
    # A diagonal matrix stays diagonal, and signs stay.
    result = orthogonalise(torch.diag(torch.tensor([2.0, -1.0, 0.5])))
    assert torch.equal(result, torch.diag(result.diagonal()))
    assert result.diagonal().sign().tolist() == [1, -1, 1]


def test_a_step_decays_weights_and_goes_against_the_gradient():
    weight = nn.Parameter(torch.eye(2))
    weight.grad = torch.diag(torch.tensor([3.0, -3.0]))
    Muon([weight]).step(learning_rate=1.0)
    # 1 (1 - 0.05) = 0.95, then the same down and up
    assert weight.diagonal().mean().item() == pytest.approx(0.95)
    assert 0.7 < 0.95 - weight[0, 0].item() < 1.2
    assert weight.grad is None


def test_momentum_carries_a_gradient_on():
    weight = nn.Parameter(torch.zeros(2, 2))
    muon = Muon([weight])
    weight.grad = torch.eye(2)
    muon.step(0.1)
    before = weight.detach().clone()
    weight.grad = torch.zeros(2, 2)
    muon.step(0.1)
    assert (weight.detach().diagonal() < before.diagonal()).all()


def test_weights_without_a_gradient_are_left_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight]).step(0.1)
    assert torch.equal(weight.detach(), torch.ones(2, 2))
