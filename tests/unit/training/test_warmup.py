"""Lessons of a warm-up: which traces stand after a context, and which tokens are in the loss."""

import pytest
import torch

from sdcore.config import ModelConfig, ProblemsConfig, PromptsConfig, TrainingConfig, WarmupConfig
from sdcore.errors import TrainingError
from sdcore.models import hub, policies
from sdcore.models.prompts import student_prompt, teacher_prompt
from sdcore.traces import parse_trace
from sdcore.training import warmup
from sdcore.training.trainer import Trainer
from sdcore.training.warmup import Lesson, Solved

TINY = ModelConfig(name="builtin:tiny-solver", device="cpu")
ARITHMETIC = ProblemsConfig(source="arithmetic", arithmetic={"operands": 3, "largest": 30})
PROMPTS = PromptsConfig(student="{{ question }}", teacher="Hint: {{ context }}\n{{ question }}")
QUESTION = "Compute 12+9-5."
RIGHT = "<step_1>12+9=21</step_1><step_2>21-5=16</step_2><answer>16</answer>"
SLIP = "<step_1>12+9=31</step_1><step_2>31-5=26</step_2><answer>26</answer>"


@pytest.fixture(scope="module")
def folder():
    return hub.resolve(TINY.name)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return policies.load_tokenizer(folder)


@pytest.fixture(scope="module")
def end_id(folder):
    return policies.end_ids(folder)[0]


@pytest.fixture(scope="module")
def solved():
    return warmup.traces(ARITHMETIC, None, 60)


def test_without_hints_all_is_as_it_was(solved, tokenizer, end_id):
    lessons = warmup.lessons(solved, 0.0, 7)
    assert lessons == [Lesson(question, trace) for question, trace, _ in solved]
    made = warmup.examples(PROMPTS, tokenizer, end_id, lessons[:2])
    for example, (question, trace, _) in zip(made, solved, strict=False):
        assert example.prompt_ids == student_prompt(tokenizer, PROMPTS, question)
        assert tokenizer.decode(example.response_ids[:-1]) == trace
        assert example.response_ids[-1] == end_id and example.token_weights is None
    assert [example.rollout_id for example in made] == ["warm-up 0", "warm-up 1"]


def test_two_thirds_stand_after_a_context_and_half_of_these_slip(solved):
    """Of 60 traces 40 have a context; 20 of these slip, and 20 traces are as they were."""
    lessons = warmup.lessons(solved, 2 / 3, 7)
    hinted = [pair for pair in zip(lessons, solved, strict=True) if pair[0].hint is not None]
    assert len(hinted) == 40
    assert {each.hint == own.trace for each, own in hinted} == {True, False}
    assert all(each.hint in (own.trace, own.solution) for each, own in hinted)
    slips = [(each, own) for each, own in hinted if each.hidden is not None]
    assert len(slips) == 20 and all(each.trace != own.trace for each, own in slips)
    for each, own in slips:
        wrong, right = parse_trace(each.trace), parse_trace(own.trace)
        assert wrong.well_formed and wrong.answer != right.answer
        assert each.trace[: each.hidden[0]] == own.trace[: each.hidden[0]]
    others = [(each, own) for each, own in zip(lessons, solved) if each.hidden is None]
    assert all(each.trace == own.trace for each, own in others)


def test_the_same_seed_gives_the_same_lessons(solved):
    assert warmup.lessons(solved, 0.5, 1) == warmup.lessons(solved, 0.5, 1)
    assert warmup.lessons(solved, 0.5, 1) != warmup.lessons(solved, 0.5, 2)


def test_without_a_reference_solution_the_context_is_the_trace():
    lessons = warmup.lessons([Solved(QUESTION, RIGHT, None)] * 8, 1.0, 0)
    assert {lesson.hint for lesson in lessons} == {RIGHT}


def test_the_wrong_result_alone_is_in_no_loss(tokenizer, end_id):
    """The 31 that is wrong is masked; the 31 and 26 that follow from it are learnt."""
    lesson = Lesson(QUESTION, SLIP, hint=RIGHT, hidden=(13, 15))
    (example,) = warmup.examples(PROMPTS, tokenizer, end_id, [lesson])
    assert example.prompt_ids == teacher_prompt(tokenizer, PROMPTS, QUESTION, RIGHT)
    pairs = list(zip(example.response_ids, example.token_weights, strict=True))
    learnt = tokenizer.decode([token for token, weight in pairs if weight == 1])
    masked = tokenizer.decode([token for token, weight in pairs if weight == 0])
    assert masked == "31" and set(example.token_weights) == {0.0, 1.0}
    rest = "<step_1>12+9=</step_1><step_2>31-5=26</step_2><answer>26</answer>"
    assert learnt.removesuffix(tokenizer.decode([end_id])) == rest


def test_a_tokenizer_that_loses_text_is_refused(tokenizer, end_id):
    lesson = Lesson(QUESTION, SLIP.replace("12+", "\u2212"), hint=RIGHT, hidden=(13, 15))
    with pytest.raises(TrainingError, match="does not give a trace back"):
        warmup.examples(PROMPTS, tokenizer, end_id, [lesson])


def test_the_loss_is_that_of_the_unmasked_tokens_and_falls(folder, tokenizer, end_id):
    lesson = Lesson(QUESTION, SLIP, hint=RIGHT, hidden=(13, 15))
    examples = warmup.examples(PROMPTS, tokenizer, end_id, [lesson])
    settings = WarmupConfig(steps=10, traces=1, batch_size=1, learning_rate=1e-3)
    trainer = Trainer(
        policies.load_policy(folder, TINY), settings, TrainingConfig(), total_steps=10, seed=0
    )
    loss_T = -trainer.signals(examples)[0].student_logprob
    learnt_T = torch.tensor(examples[0].token_weights) == 1
    losses = [trainer.step(examples).loss for _ in range(10)]
    assert losses[0] == pytest.approx(float(loss_T[learnt_T].mean()), rel=1e-4)
    assert loss_T[~learnt_T].max() > 5  # what the slip alone would have added
    assert losses[-1] < losses[0] / 4


def test_the_share_of_an_update_that_rounding_keeps():
    # Between 1 and 2 bfloat16 has steps of 1/128; 1/128 stays and 1/1024 is lost: 64/65.
    before = {"a": torch.ones(1), "b": torch.ones(1), "frozen": torch.ones(1)}
    trained = before | {"a": torch.tensor([1 + 1 / 128]), "b": torch.tensor([1 + 1 / 1024])}
    assert warmup.kept_share(before, trained, torch.bfloat16) == pytest.approx(64 / 65)
    assert warmup.kept_share(before, trained, torch.float32) == 1
    assert warmup.kept_share(before, before | {"a": trained["b"]}, torch.bfloat16) == 0
    assert warmup.kept_share(before, before, torch.bfloat16) is None
