import math
from dataclasses import replace

import pytest
import torch

from sdcore.errors import TrainingError
from sdcore.training import results
from sdcore.training.batches import Example
from sdcore.training.results import Pass, TokenSignals

EXAMPLES = [
    Example("short", [0], [1, 2], [0, 0], sampled_logprobs=[-1.0, -2.0]),
    Example("long", [0], [1, 2, 3], [0, 0], sampled_logprobs=[-1.0, -1.0, -1.0]),
]
ALIKE = [torch.ones(2), torch.ones(3)]  # weights of their tokens


def passes():
    """The long example was in the first micro-batch, the short one in the second."""
    return [
        Pass([1], 0.25, torch.zeros(3), signals(3, plus=0.0)),
        Pass([0], 0.5, torch.zeros(2), signals(2, plus=10.0)),
    ]


def signals(tokens, plus):
    """Student log-prob 0, entropy 1, advantage 2, teacher log-prob 3, KL 4, all raised."""
    return TokenSignals(*(torch.full((tokens,), value + plus) for value in range(5)))


def update_of(passes, weights=ALIKE):
    return results.update_of(
        EXAMPLES, passes, weights, grad_norm=2, learning_rate=0.1, padded=True, seconds=3
    )


def test_update_means_are_per_token_over_all_passes():
    update = update_of(passes())
    assert (update.loss, update.grad_norm, update.learning_rate, update.seconds) == (
        0.75,
        2,
        0.1,
        3,
    )
    assert (update.rollouts, update.tokens, update.mean_length) == (2, 5, 2.5)
    assert update.entropy == pytest.approx((3 * 1 + 2 * 11) / 5)
    assert update.kl == pytest.approx((3 * 4 + 2 * 14) / 5)
    assert update.first_token_kl == (4 + 14) / 2  # one token of each response
    # log-probs 0, 0, 0 against -1 each, then 10, 10 against -1 and -2
    assert update.logprob_drift == pytest.approx((3 * 1 + 11 + 12) / 5)
    assert update.logprob_drift_max == 12
    # sides 3 + 4 = 4 + 5 tokens each alone: no padding
    assert update.padding_share == 0


def test_without_a_teacher_there_is_no_kl():
    none = {"teacher_logprob": None, "kl": None}
    bare = [replace(each, signals=each.signals._replace(**none)) for each in passes()]
    update = update_of(bare)
    assert update.kl is None and update.first_token_kl is None
    assert update.signals[0].teacher_logprob is None


def test_weights_are_stored_with_the_tokens_and_rollouts_without_any_are_counted():
    update = update_of(passes(), [torch.zeros(2), torch.tensor([0.0, 0.5, 2.0])])
    assert [each.weight.tolist() for each in update.signals] == [[0, 0], [0, 0.5, 2]]
    assert (update.weightless, update.columns["weightless"], update.rollouts) == (1, 1, 2)
    assert update_of(passes()).weightless == 0


def test_signals_are_in_the_order_of_the_examples():
    short, long = results.signals_of(EXAMPLES, passes())
    assert short.student_logprob.tolist() == [10, 10]
    assert long.kl.tolist() == [4, 4, 4]


def test_finite_steps_pass():
    results.require_finite(EXAMPLES, passes(), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_rollout(bad):
    first, second = passes()
    broken = replace(second, loss=bad, loss_T=torch.tensor([0.0, bad]))
    with pytest.raises(TrainingError, match="rollouts short\n"):
        results.require_finite(EXAMPLES, [first, broken], 1.0)


def test_a_gradient_alone_that_is_not_finite_names_all_rollouts():
    with pytest.raises(TrainingError, match="rollouts short, long\n"):
        results.require_finite(EXAMPLES, passes(), math.nan)


def with_kl(*responses):
    return [TokenSignals(*[torch.zeros(len(kl))] * 4, torch.tensor(kl)) for kl in responses]


@pytest.mark.parametrize(
    "responses",
    [
        ([4.4, 0.1, 0.0], [4.4, 0.3]),  # a teacher that expects a thought
        ([18.0, 0.0], [0.0, 0.0], [0.0, 0.0]),  # the mean counts: 6
        ([2.1],),
    ],
)
def test_an_outlier_at_the_first_token_stops_the_run(responses):
    with pytest.raises(TrainingError, match="another beginning of the response") as caught:
        results.require_paired_start(with_kl(*responses), 2.0)
    mean = sum(kl[0] for kl in responses) / len(responses)
    assert f"a mean KL of {mean:.3g} nats" in caught.value.got
    assert "2 nats" in caught.value.expected and "teacher_prompt_ids" in caught.value.fix


@pytest.mark.parametrize(
    "responses",
    [
        ([0.52, 0.0, 0.0], [1.03, 0.0]),  # SmolLM2 under a step-aligned critique
        ([1.9, 0.0], [2.1, 0.0]),  # 2 nats on average
        ([4.4, 0.5, 0.6], [4.4, 0.4]),  # the teacher differs everywhere
        ([0.0, 9.0, 9.0],),
        (),
    ],
)
def test_contexts_that_move_the_first_token_no_more_than_others_pass(responses):
    results.require_paired_start(with_kl(*responses), 2.0)
    results.require_paired_start([each._replace(kl=None) for each in with_kl(*responses)], 2.0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.01), (torch.bfloat16, 0.2)])
def test_another_policys_log_probs_stop_the_round_and_rounding_does_not(dtype, bound):
    update = update_of(passes())
    results.require_agreement(replace(update, logprob_drift=bound), dtype)
    results.require_agreement(replace(update, logprob_drift=None), dtype)  # nothing to compare
    for drift in (1.01 * bound, math.nan):
        with pytest.raises(TrainingError, match="not the trainer's"):
            results.require_agreement(replace(update, logprob_drift=drift), dtype)
