import pytest
import torch

from sdcore.config import TeacherConfig
from sdcore.training.batches import pack
from sdcore.training.teacher import Teacher, trained
from tests.helpers.tiny import adapted, llama

PACKED = pack([[3, 4], [5]], [[6, 7, 8], [9, 10]])


def full(seed=0):
    return llama(seed).requires_grad_(True)


def move(policy, by=0.1):
    """Change all trained weights, as an optimizer step does."""
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained(policy).values():
            weight.add_(torch.randn(weight.shape, generator=drawn), alpha=by)


def logits(teacher):
    total = sum(v.share * v.head.logits(v.hidden_TD) for v in teacher.head_inputs(PACKED))
    return total.detach().clone()


def own_logits(policy):
    return logits(Teacher(policy, TeacherConfig(kind="live")))


KINDS = ["frozen", "live", "ema", "trust_region"]


@pytest.mark.parametrize("make", [adapted, full])
@pytest.mark.parametrize("kind", KINDS)
def test_every_teacher_starts_as_the_student(make, kind):
    policy = make()
    torch.testing.assert_close(
        logits(Teacher(policy, TeacherConfig(kind=kind))), own_logits(policy)
    )


@pytest.mark.parametrize("make", [adapted, full])
def test_frozen_stays_and_live_follows(make):
    policy = make()
    before = own_logits(policy)
    frozen = Teacher(policy, TeacherConfig(kind="frozen"))
    move(policy)
    frozen.follow()
    assert torch.equal(logits(frozen), before)
    assert not torch.allclose(own_logits(policy), before)


@pytest.mark.parametrize("make", [adapted, full])
def test_trust_region_mixes_initial_and_live_logits(make):
    policy = make()
    before = own_logits(policy)
    teacher = Teacher(policy, TeacherConfig(kind="trust_region", mix=0.25))
    move(policy)
    torch.testing.assert_close(logits(teacher), 0.75 * before + 0.25 * own_logits(policy))


@pytest.mark.parametrize("make", [adapted, full])
def test_ema_moves_by_one_minus_decay(make):
    policy = make()
    start = {name: weight.detach().clone() for name, weight in trained(policy).items()}
    teacher = Teacher(policy, TeacherConfig(kind="ema", decay=0.9))
    move(policy)
    teacher.follow()
    for name, weight in trained(policy).items():
        expected = 0.9 * start[name] + 0.1 * weight
        torch.testing.assert_close(teacher.state()[f"average/{name}"], expected.detach())


@pytest.mark.parametrize("make", [adapted, full])
def test_ema_scores_with_its_average_and_gives_the_students_weights_back(make):
    policy, other = make(), make()
    teacher = Teacher(policy, TeacherConfig(kind="ema", decay=0.5))
    move(policy)
    teacher.follow()
    move(other, 0.05)  # half way
    held = {name: weight.detach().clone() for name, weight in trained(policy).items()}
    torch.testing.assert_close(logits(teacher), own_logits(other), rtol=1e-4, atol=1e-5)
    for name, weight in trained(policy).items():
        assert torch.equal(weight, held[name])
        assert weight.requires_grad


def test_average_of_a_bfloat16_policy_keeps_small_moves():
    policy = llama().to(torch.bfloat16)
    teacher = Teacher(policy, TeacherConfig(kind="ema", decay=0.999))
    policy.float().requires_grad_(True)
    before = {name: value.clone() for name, value in teacher.state().items()}
    move(policy)
    teacher.follow()
    assert all(not torch.equal(value, before[name]) for name, value in teacher.state().items())


@pytest.mark.parametrize("make", [adapted, full])
def test_state_restores_the_average_bit_for_bit(make):
    policy = make()
    teacher = Teacher(policy, TeacherConfig(kind="ema", decay=0.5))
    move(policy)
    teacher.follow()
    state = {name: value.clone() for name, value in teacher.state().items()}
    again = Teacher(make(), TeacherConfig(kind="ema", decay=0.5))
    again.restore(state)
    assert torch.equal(logits(again), logits(teacher))


@pytest.mark.parametrize("kind", ["frozen", "live", "trust_region"])
def test_other_kinds_have_no_state(kind):
    assert Teacher(adapted(), TeacherConfig(kind=kind)).state() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_takes_no_gradient(kind):
    for looked in Teacher(full(), TeacherConfig(kind=kind)).head_inputs(PACKED):
        assert not looked.hidden_TD.requires_grad
