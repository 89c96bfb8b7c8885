from dataclasses import replace

import numpy as np
import pytest
import torch

from sdcore.errors import TrainingError
from sdcore.training import batches
from sdcore.training.batches import Example
from tests.helpers.tiny import examples


def sized(prompt, response, teacher=None):
    teacher_ids = None if teacher is None else [0] * teacher
    return Example(f"{prompt}+{response}", [0] * prompt, [0] * response, teacher_ids)


def test_pack_joins_prompts_and_responses_and_finds_the_predicting_positions():
    packed = batches.pack([[1, 2], [3]], [[4, 5, 6], [7]])
    assert packed.ids_L.tolist() == [1, 2, 4, 5, 6, 3, 7] and packed.lengths == (5, 2)
    assert packed.tokens_T.tolist() == [4, 5, 6, 7]
    # 4 is predicted from 2 (position 1), 5 from 4, 6 from 5; 7 from 3 (position 5 + 0)
    assert packed.positions_T.tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize(("prompt", "response"), [([], [1]), ([1], [])])
def test_pack_refuses_empty_sides(prompt, response):
    with pytest.raises(TrainingError, match="no tokens"):
        batches.pack([[1], prompt], [[2], response])


def test_teacher_side_scores_the_same_response_after_another_prompt():
    some = examples()
    student, teacher = batches.student_side(some), batches.teacher_side(some)
    batches.require_same_response(student, teacher)
    assert student.tokens_T.tolist() == [i for e in some for i in e.response_ids]
    assert not torch.equal(student.positions_T, teacher.positions_T)


def test_other_response_ids_are_refused():
    some = examples()
    changed = [replace(some[0], response_ids=[9, *some[0].response_ids[1:]]), *some[1:]]
    with pytest.raises(TrainingError, match="different tokens"):
        batches.require_same_response(batches.student_side(some), batches.teacher_side(changed))


def test_distillation_without_a_teacher_prompt_is_refused_by_name():
    with pytest.raises(TrainingError, match="rollout-1"):
        batches.teacher_side([replace(e, teacher_prompt_ids=None) for e in examples(2)])


def test_truncation_is_refused_and_the_rollout_named():
    batches.require_whole([sized(4, 6, 10)], 16)
    with pytest.raises(TrainingError, match=r"17 tokens in 4\+6"):
        batches.require_whole([sized(1, 1), sized(4, 6, 11)], 16)


def test_microbatches_hold_each_example_once_and_keep_to_the_budget():
    drawn = np.random.default_rng(0)
    some = [sized(*drawn.integers(1, 200, 3)) for _ in range(100)]
    groups = list(batches.microbatches(some, 3000))
    assert sorted(index for group in groups for index in group) == list(range(100))
    student_N, teacher_N = batches.lengths(some)
    for group in groups:
        assert len(group) * max(student_N[group].max(), teacher_N[group].max()) <= 3000


def test_without_padding_a_budget_is_filled_with_tokens():
    # student and teacher: 2 and 6, 3 and 3, 4 and 4, 5 and 0 tokens; 6 + 4 + 3 would be 13
    some = [sized(1, 1, 5), sized(1, 2, 1), sized(1, 3, 1), sized(1, 4)]
    assert list(batches.microbatches(some, 11, padded=False)) == [[0, 2], [1, 3]]
    assert list(batches.microbatches(some, 13, padded=False)) == [[0, 2, 1], [3]]


@pytest.mark.parametrize("padded", [True, False])
def test_no_rank_gets_more_than_the_budget(padded):
    # dealt to 8 ranks, 9 examples of 10 tokens would be 20 for the first, and 10 for the others
    equal = [sized(4, 6)] * 9
    groups = batches.microbatches(equal, 15, padded=padded, ranks=8)
    assert list(map(len, groups)) == [8, 1]
    assert list(map(len, batches.microbatches(equal, 20, padded=padded, ranks=8))) == [9]
    drawn = np.random.default_rng(2)
    some = [sized(*drawn.integers(1, 100, 3)) for _ in range(60)]
    sides_N2 = np.stack(batches.lengths(some), 1)
    dealt = list(batches.microbatches(some, 600, padded=padded, ranks=3))
    assert sorted(index for group in dealt for index in group) == list(range(60))
    for share in (group[rank::3] for group in dealt for rank in range(3) if group[rank::3]):
        widest_2, used_2 = sides_N2[share].max(0), sides_N2[share].sum(0)
        assert (len(share) * widest_2 if padded else used_2).max() <= 600


def test_an_example_larger_than_the_budget_stands_alone():
    assert list(batches.microbatches([sized(5, 5), sized(50, 50)], 20)) == [[1], [0]]
    pair = [sized(50, 50), sized(50, 50)]
    assert list(batches.microbatches(pair, 20, ranks=2)) == [[0, 1]]  # alone on its rank


def test_mixed_lengths_are_padded_by_less_than_a_tenth():
    drawn = np.random.default_rng(1)
    some = [sized(60, length, 400) for length in drawn.integers(16, 1024, 64)]
    groups = list(batches.microbatches(some, 16384))
    assert batches.padding_share(some, groups) < 0.1
    assert batches.padding_share(some, [list(range(64))]) > 0.2  # what it would be in one


def test_padding_share_by_hand():
    # student sides 4 and 2, teacher sides 6 and 4: areas 2 * 4 + 2 * 6 = 20 hold 16 tokens
    assert batches.padding_share([sized(2, 2, 4), sized(1, 1, 3)], [[0, 1]]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("weights", "by_token", "by_sequence"),
    [
        ([[1], [1, 1, 1]], [[1 / 4], [1 / 4] * 3], [[1 / 2], [1 / 6] * 3]),
        ([[2], [0, 3, 5]], [[2 / 10], [0, 3 / 10, 5 / 10]], [[1 / 2], [0, 3 / 16, 5 / 16]]),
        ([[0], [0, 1, 1]], [[0], [0, 1 / 2, 1 / 2]], [[0], [0, 1 / 2, 1 / 2]]),
        ([[0], [0, 0, 0]], [[0], [0, 0, 0]], [[0], [0, 0, 0]]),
    ],
    ids=str,
)
def test_shares_are_weights_over_their_sum_or_over_that_of_their_sequence(
    weights, by_token, by_sequence
):
    given = [torch.tensor(each, dtype=torch.float32) for each in weights]
    for expected, flag in ((by_token, False), (by_sequence, True)):
        for found, share in zip(batches.loss_shares(given, flag), expected, strict=True):
            assert found.tolist() == pytest.approx(share)


def test_advantages_repeat_over_the_response_and_must_be_there():
    some = [replace(sized(1, 1), advantage=1.0), replace(sized(1, 2), advantage=-2.0)]
    assert batches.advantages(some).tolist() == [1, -2, -2]
    with pytest.raises(TrainingError, match="advantage"):
        batches.advantages([sized(1, 1)])


def test_sampled_logprobs_are_there_for_all_or_for_none():
    some = [replace(sized(1, 1), sampled_logprobs=[-1.0]), sized(1, 1)]
    assert batches.sampled_logprobs(some[:1]).tolist() == [-1]
    assert batches.sampled_logprobs(some) is None
