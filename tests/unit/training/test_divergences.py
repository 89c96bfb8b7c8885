import pytest
import torch

from sdcore.training.divergences import DIVERGENCES, Pair

LN = torch.log


def pair(student, teacher):
    return Pair.of(LN(torch.tensor([student])), LN(torch.tensor([teacher])))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # q = (1/2, 1/2), t = (3/4, 1/4)
        ("forward_kl", 0.130812),  # 3/4 ln 3/2 + 1/4 ln 1/2
        ("reverse_kl", 0.143841),  # 1/2 ln 2/3 + 1/2 ln 2
        # m = (5/8, 3/8): 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3)
        ("jsd", 0.033822),
    ],
)
def test_values_by_hand(name, expected):
    terms_NV, _ = DIVERGENCES[name](pair([0.5, 0.5], [0.75, 0.25]), 0.5)
    assert terms_NV.sum().item() == pytest.approx(expected, abs=2e-6)


def test_jsd_weighs_the_teacher_by_beta():
    # q = (1/2, 1/2), t = (3/4, 1/4), beta = 1/4: m = (9/16, 7/16)
    # 1/4 (3/4 ln 4/3 + 1/4 ln 4/7) + 3/4 (1/2 ln 8/9 + 1/2 ln 8/7) = 0.018964 + 0.005906
    terms_NV, _ = DIVERGENCES["jsd"](pair([0.5, 0.5], [0.75, 0.25]), 0.25)
    assert terms_NV.sum().item() == pytest.approx(0.024870, abs=2e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_divergence_and_no_gradient_between_equals(name):
    same = pair([0.2, 0.3, 0.5], [0.2, 0.3, 0.5])
    terms_NV, slopes_NV = DIVERGENCES[name](same, 0.3)
    gradient_NV = slopes_NV - same.q_NV * slopes_NV.sum(1, keepdim=True)
    assert terms_NV.sum().item() == pytest.approx(0, abs=1e-7)
    assert gradient_NV.abs().max().item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_slopes_are_derivatives_of_the_terms_by_log_q(name):
    log_q_NV = torch.log_softmax(torch.tensor([[0.3, -1.2, 0.8]], dtype=torch.float64), -1)
    log_t_NV = torch.log_softmax(torch.tensor([[1.0, 0.1, -0.4]], dtype=torch.float64), -1)
    _, slopes_NV = DIVERGENCES[name](Pair.of(log_q_NV, log_t_NV.clone()), 0.3)
    step = 1e-6

    def total(shift_NV):
        moved = Pair.of(log_q_NV + shift_NV, log_t_NV.clone())
        return DIVERGENCES[name](moved, 0.3)[0].sum()

    for index in range(3):
        shift_NV = torch.zeros_like(log_q_NV)
        shift_NV[0, index] = step
        numeric = (total(shift_NV) - total(-shift_NV)) / (2 * step)
        assert slopes_NV[0, index].item() == pytest.approx(numeric.item(), rel=1e-6)


def test_buckets_keep_the_support_and_sum_up_the_tail():
    whole = pair([0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2])
    support_NK = whole.support("teacher", 2)
    assert sorted(support_NK[0].tolist()) == [1, 3]
    coarse = whole.bucketed(torch.tensor([[1, 3]]))
    torch.testing.assert_close(coarse.q_NV, torch.tensor([[0.3, 0.1, 0.6]]))
    torch.testing.assert_close(coarse.t_NV, torch.tensor([[0.6, 0.2, 0.2]]))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_coarse_graining_only_shrinks_a_divergence(name, side):
    logits = torch.randn(2, 50, 20, generator=torch.Generator().manual_seed(0)).mul_(2)
    whole = Pair.of(*torch.log_softmax(logits, -1))
    coarse = whole.bucketed(whole.support(side, 5))
    fine_N, coarse_N = (DIVERGENCES[name](p, 0.5)[0].sum(1) for p in (whole, coarse))
    assert (coarse_N >= -1e-6).all()
    assert (coarse_N <= fine_N + 1e-6).all()
    assert (coarse_N < fine_N - 1e-3).any()


def test_tail_that_underflows_still_has_a_gradient():
    log_q_NV = torch.tensor([[0.0, -200.0, -200.0]])  # exp(-200) is 0 in float32
    log_t_NV = LN(torch.tensor([[0.5, 0.25, 0.25]]))
    whole, support_NK = Pair.of(log_q_NV, log_t_NV), torch.tensor([[0]])
    gradient_NV = whole.spread(torch.tensor([[0.5, -0.5]]), support_NK)
    torch.testing.assert_close(gradient_NV, torch.tensor([[0.5, -0.25, -0.25]]))


def test_temperature_divides_the_logits_of_both():
    logits_q, logits_t = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 0.0, 1.0]])
    tempered = Pair.of(torch.log_softmax(logits_q, -1), torch.log_softmax(logits_t, -1)).tempered(2)
    torch.testing.assert_close(tempered.q_NV, torch.softmax(logits_q / 2, -1))
    torch.testing.assert_close(tempered.t_NV, torch.softmax(logits_t / 2, -1))
