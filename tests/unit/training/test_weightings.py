from copy import deepcopy
from dataclasses import fields, replace

import pytest
import torch

from sdcore.config import WEIGHTINGS, WeightingSettings, weighting
from sdcore.contexts import Critique
from sdcore.errors import ConfigError, PluginError, TrainingError
from sdcore.models import weight_files
from sdcore.rollouts import JudgedRollout, Problem, Rollout
from sdcore.tiny_solver.tokenizer import build_tokenizer
from sdcore.training.batches import Example
from sdcore.training.results import TokenSignals
from sdcore.training.weightings import Region, ResponseTokens, Weigher, regions_of
from tests.helpers.chunks import chunks_of
from tests.helpers.tiny import examples, llama
from tests.unit.training.test_trainer import (
    assert_same_bits,
    distill,
    response_logprobs,
    reward,
    trainer,
)

TOKENIZER = build_tokenizer()
TEXT = "<step_1>1+1=2</step_1><step_2>2+3=6</step_2><step_3>6+1=7</step_3><answer>7</answer>"
PIECES = ("<step_1>1+1=2</step_1>", "<step_2>2+3=6</step_2>", "<step_3>6+1=7</step_3>")
REGIONS = [Region.BEFORE, Region.AT, Region.AT, Region.AFTER, Region.ANSWER]


def weigher(**settings):
    """The weighting of the table `tokens` with these settings."""
    return Weigher.of(distill(tokens=settings).tokens)


def example(length=5, **changes):
    return Example("r", [1], [2] * length, correct=False, **{"regions": REGIONS[:length]} | changes)


def signals(advantages, divergences):
    rows = torch.zeros(len(advantages)), torch.zeros(len(advantages))
    return TokenSignals(*rows, torch.tensor(advantages), rows[0], torch.tensor(divergences))


def judged(*, text=TEXT, correct=False, critique=None):
    empty = dict.fromkeys(field.name for field in fields(Rollout))
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    rollout = Rollout(**empty | {"response_ids": ids, "text": text, "correct": correct})
    return JudgedRollout(rollout, Problem("p", "q", None, "6"), critique)


def pieces(mine):
    """The text of each region, and the region of the end token, which has no text."""
    found = dict.fromkeys(Region, "")
    *regions, last = regions_of(TOKENIZER, mine)
    for token_id, region in zip(mine.rollout.response_ids, regions, strict=False):
        found[region] += TOKENIZER.decode([token_id])
    return found, last


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "all"}, [1, 1, 1, 1, 1]),
        ({"kind": "until_error"}, [1, 1, 1, 0, 0]),
        ({"kind": "error"}, [0, 1, 1, 0, 0]),
        ({"after": 0.5, "answer": 0}, [1, 1, 1, 0.5, 0]),
        ({"before": 0, "at": 2.5}, [0, 2.5, 2.5, 1, 1]),
    ],
    ids=str,
)
def test_weights_by_region_are_of_wrong_rollouts_and_correct_ones_keep_all(settings, expected):
    found = weigher(**settings)
    assert found.weights(example()).tolist() == expected
    assert found.weights(replace(example(), correct=True)).tolist() == [1] * 5


def test_a_wrong_rollout_whose_error_nobody_has_found_teaches_nothing_by_region():
    unknown = example(regions=None)
    for kind in ("until_error", "error", "regions"):
        assert weigher(kind=kind).weights(unknown).tolist() == [0] * 5
    assert weigher(kind="all").weights(unknown).tolist() == [1] * 5


def test_weights_by_position_are_those_of_pw_opsd():
    # p = 0.25 and 0.75: 0.25 + 0.75 σ(−0.5) and 0.25 + 0.75 σ(4.5), σ = 0.3775407 and 0.9890131.
    weights_T = weigher(kind="positions").weights(example(2))
    assert weights_T.tolist() == pytest.approx([0.5331555, 0.9917598], abs=1e-6)
    even = weigher(kind="positions", floor=0, centre=0.5, width=0.25).weights(example(3))
    # p = 1/6, 1/2, 5/6: σ(−4/3), 1/2, σ(4/3)
    assert even.tolist() == pytest.approx([0.2086085, 0.5, 0.7913915], abs=1e-6)


def test_weights_by_advantage_are_bounded_and_by_relevance_are_a_mask():
    known = signals([-3.0, 0.5, 0.0, 1.0, -0.25], [0.2, 0.1, 0.0999, 0.0, 5.0])
    bounded = weigher(kind="advantages", bound=2.0).weights(example(), known)
    assert bounded.tolist() == [1, 0.25, 0, 0.5, 0.125]
    assert weigher(kind="relevance").weights(example(), known).tolist() == [1, 1, 0, 0, 1]
    assert weigher(kind="relevance", threshold=0).weights(example(), known).tolist() == [1] * 5


def test_where_the_tokens_are_relative_to_the_first_error():
    found, last = pieces(judged(critique=Critique("D", 2, TEXT)))
    assert found == {
        Region.BEFORE: PIECES[0],
        Region.AT: PIECES[1],
        Region.AFTER: PIECES[2],
        Region.ANSWER: "<answer>7</answer>",
    }
    assert last is Region.ANSWER


def test_an_error_that_no_step_has_is_the_answer():
    found, last = pieces(judged(critique=Critique("D", None, TEXT)))
    assert found[Region.BEFORE] == "".join(PIECES) and found[Region.AT] == "<answer>7</answer>"
    assert last is Region.AT
    unfinished, last = pieces(judged(text=PIECES[0], critique=Critique("C", None, PIECES[0])))
    assert (unfinished[Region.BEFORE], last) == (PIECES[0], Region.BEFORE)


def test_without_a_valid_critique_only_a_correct_rollout_has_regions():
    for critique in (None, Critique(None, None, None, valid=False)):
        assert regions_of(TOKENIZER, judged(critique=critique)) is None
        right, last = pieces(judged(correct=True, critique=critique))
        assert right[Region.BEFORE] == "".join(PIECES) and last is Region.ANSWER
    slip, _ = pieces(judged(correct=True, critique=Critique("B", 2, TEXT)))
    assert slip[Region.AT] == PIECES[1]  # a right answer in spite of it


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda tokens: torch.ones(tokens.length + 1), r"got: \(6,\)"),
        (lambda tokens: [1.0] * tokens.length, "got: list"),
        (lambda tokens: torch.arange(tokens.length) - 1.0, "values from -1 to 3"),
        (lambda tokens: torch.ones(tokens.length) / 0, "values from inf"),
        (lambda tokens: torch.ones(tokens.length) * torch.nan, "values from nan"),
        (lambda tokens: torch.full((tokens.length,), 1e300, dtype=torch.float64), "from inf"),
        (lambda tokens: torch.full((tokens.length,), 1e38), r"from 1e\+38"),  # the sum is infinite
    ],
)
def test_what_are_no_weights_is_refused_with_the_rollout(function, message):
    with pytest.raises(TrainingError, match=rf"{message}[\s\S]*where: own, rollout r"):
        Weigher("own", frozenset(), function).weights(example())


def test_a_weighting_sees_what_it_has_asked_for_and_nothing_else():
    seen = []

    def look(tokens: ResponseTokens):
        seen.append([name for name, value in vars(tokens).items() if value is not None])
        return torch.ones(tokens.length)

    for needs in ((), ("regions",), ("advantages", "divergences")):
        Weigher("own", frozenset(needs), look).weights(example(), signals([0.0] * 5, [0.0] * 5))
    rows = ["regions_T"], ["advantages_T", "divergences_T"]
    assert seen == [["length", "correct", *more] for more in ([], *rows)]


def test_a_weighting_that_changes_what_it_sees_changes_no_signal():
    given = signals([1.0] * 5, [2.0] * 5)
    needs = frozenset({"advantages", "divergences"})
    Weigher("own", needs, lambda t: t.advantages_T.mul_(0) + t.divergences_T.mul_(0)).weights(
        example(), given
    )
    assert given.advantage.tolist() == [1.0] * 5 and given.kl.tolist() == [2.0] * 5


def test_a_weighting_that_fails_is_named_with_the_rollout():
    with pytest.raises(PluginError, match=r"'own' fails\n  got: KeyError[\s\S]*rollout r"):
        Weigher("own", frozenset(), lambda tokens: {}[tokens.length]).weights(example())


def test_a_wrong_registration_is_refused():
    with pytest.raises(ConfigError, match="cannot need this\n  got: kl"):
        weighting("kl", "regions")
    with pytest.raises(ConfigError, match="of another kind"):
        weighting(settings=dict)


def test_every_built_in_weighting_says_what_it_is_and_can_be_applied():
    known = signals([1.0] * 5, [1.0] * 5)
    for name, entry in WEIGHTINGS.entries().items():
        assert entry.about and issubclass(entry.settings, WeightingSettings)
        assert weigher(kind=name).weights(example(), known).shape == (5,)


def placed(some):
    """The examples, the odd ones wrong, their tokens cut into the four regions."""
    made = []
    for index, each in enumerate(some):
        length = len(each.response_ids)
        regions = sorted(Region(place % 4) for place in range(length))
        made.append(replace(each, correct=index % 2 == 0, regions=regions))
    return made


def reference_loss(model, some, weights_of):
    """Σ w KL / Σ w over all tokens in float64, on full logits; w from KL and log-ratio."""
    total, weight_sum = 0, 0
    for each in some:
        with torch.no_grad():
            log_t = response_logprobs(model, each.teacher_prompt_ids, each.response_ids)
        log_q = response_logprobs(model, each.prompt_ids, each.response_ids)
        kl_T = (log_t.exp() * (log_t - log_q)).sum(1)
        taken = range(len(kl_T)), each.response_ids
        gap_T = log_t[taken] - log_q[taken]
        weights_T = weights_of(each, kl_T.detach(), gap_T.detach())
        total, weight_sum = total + (weights_T * kl_T).sum(), weight_sum + weights_T.sum()
    return total / weight_sum


def _by_region(each, kl_T, gap_T):
    weights = {Region.BEFORE: 1.0, Region.AT: 3.0, Region.AFTER: 0.0, Region.ANSWER: 0.5}
    return torch.tensor([1.0 if each.correct else weights[r] for r in each.regions])


CASES = {
    "regions": ({"at": 3, "after": 0, "answer": 0.5}, _by_region),
    "advantages": (
        {"kind": "advantages", "bound": 0.7},
        lambda each, kl_T, gap_T: gap_T.abs().clamp(max=0.7),
    ),
    "relevance": (
        {"kind": "relevance", "threshold": 0.2},
        lambda each, kl_T, gap_T: (kl_T >= 0.2).double(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_weighted_means_on_full_logits(case, tmp_path):
    tokens, weights_of = CASES[case]
    some, naive = placed(examples()), deepcopy(llama()).double().requires_grad_(True)
    expected = reference_loss(naive, some, weights_of)
    expected.backward()
    made = trainer(distill(tokens=tokens), None, max_grad_norm=1e9, tokens_per_microbatch=30)
    update = made.step(some)
    assert update.loss == pytest.approx(expected.item(), rel=1e-5)
    made.save(tmp_path / "checkpoint")
    moments = weight_files.load_tensors(tmp_path / "checkpoint/trainer/state.safetensors")
    for name, weight in naive.named_parameters():
        gradient = moments[f"exp_avg/{name}"].double() / 0.1  # of AdamW, after one step
        scale = weight.grad.abs().max().item()
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-4 * scale + 1e-8)


def test_a_chunked_loss_with_weights_is_the_whole_one():
    some, condition = placed(examples()), distill(tokens={"kind": "advantages"})
    whole = trainer(condition).step(some)
    with chunks_of(1):
        chunked = trainer(condition).step(some)
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-5)
    assert chunked.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)


def test_by_sequence_the_mean_is_over_sequences_with_a_weight():
    some = placed(examples(3))  # lengths 4, 6, 8; the second is wrong
    some[2] = replace(some[2], correct=False, regions=None)
    made = trainer(reward(normalise="sequence", tokens={"before": 0, "answer": 0}))
    # On policy the ratio is 1, so the loss of a token is minus its rollout's advantage, 1 and −1.
    update = made.step([replace(each, sampled_logprobs=None) for each in some])
    assert update.loss == pytest.approx((-1 + 1) / 2, abs=1e-6)
    assert update.weightless == 1
    assert [each.weight.tolist() for each in update.signals] == [
        [1] * 4,
        [0, 0, 1, 1, 1, 0],  # places 0 … 5 modulo 4, sorted: two before, two at, after, answer
        [0] * 8,
    ]


def test_where_every_weight_is_0_no_step_is_taken():
    made = trainer(distill(tokens="until_error"))
    unknown = [replace(each, correct=False) for each in examples()]
    assert made.step(unknown) is None
    assert_same_bits(made, trainer())
    one = [*unknown[1:], replace(unknown[0], correct=True, regions=[Region.BEFORE] * 4)]
    update, alone = made.step(one), trainer().step(unknown[:1])
    assert update.weightless == 5
    assert update.loss == pytest.approx(alone.loss, rel=1e-5)
    assert update.learning_rate == alone.learning_rate  # the schedule has not moved either


def test_a_trainer_for_other_tokens_refuses_the_checkpoint(tmp_path):
    made = trainer(distill(tokens="until_error"))
    made.save(tmp_path / "checkpoint")
    trainer(distill(tokens="until_error")).load(tmp_path / "checkpoint")
    with pytest.raises(Exception, match="settings"):
        trainer(distill(tokens={"after": 0.5})).load(tmp_path / "checkpoint")


def test_a_weighting_that_needs_a_teacher_stops_without_one():
    made = trainer(reward(tokens="relevance"))
    with pytest.raises(TrainingError, match="needs a teacher"):
        made.step(examples())
