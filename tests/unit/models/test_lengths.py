"""Every character is a token, so that lengths can be counted by hand."""

from sdcore.config import PromptsConfig
from sdcore.contexts import CONTEXTS, template_context
from sdcore.models.lengths import Room
from tests.helpers.families import characters

PROMPTS = PromptsConfig(student="{{ question }}", teacher="{{ student }}|{{ context }}")
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def excess(question, solution=None, *, context="reference", taught=True, student=30, teacher=30):
    contexts = [CONTEXTS[context] if isinstance(context, str) else context]
    room = Room(
        characters(BARE), PROMPTS, contexts, new_tokens=10, student=student, teacher=teacher
    )
    return room.excess(question, solution, "7", taught=taught)


def test_a_prompt_and_a_whole_response_must_fit():
    assert excess("q" * 20) is None
    reason = excess("q" * 21)
    assert "student's prompt has 21 tokens" in reason and "10 new ones" in reason
    assert "exceeds the model's 30" in reason
    assert excess("q" * 21, taught=False)
    assert excess("q" * 21, student=None, teacher=None) is None


def test_sampling_and_training_have_limits_of_their_own():
    assert excess("q" * 15, student=24, taught=False)
    assert excess("q" * 15, student=None, teacher=24)  # the trainer scores the student's prompt too
    assert excess("q" * 15, student=None, teacher=24, taught=False) is None


def test_the_teacher_must_have_room_for_a_context_that_the_problem_determines():
    assert excess("q" * 10, "s" * 9) is None  # 10 + "|" + 9 + 10 new ones = 30
    reason = excess("q" * 10, "s" * 10)
    assert "teacher's prompt with context 'reference' has 21 tokens" in reason
    assert excess("q" * 10, "s" * 10, taught=False) is None
    assert excess("q" * 10, None) is None  # no solution is another error
    assert "'answer_only'" in excess("q" * 10, context="answer_only")
    assert excess("q" * 10, "s" * 10, context="none") is None


def test_contexts_of_ones_own_count_as_far_as_the_problem_determines_them():
    twice = template_context("twice", "{{ solution }}{{ solution }}")
    assert excess("q" * 10, "s" * 4, context=twice) is None
    assert "'twice'" in excess("q" * 10, "s" * 5, context=twice)
    quotes = template_context("quotes", "{{ trace.splitlines()[0] }}")  # unknown, but not empty
    assert excess("q", context=quotes, teacher=60) is None
    unknown = template_context("unknown", "{{ critique.corrected }}{{ solution }}")
    assert excess("q" * 10, "s" * 50, context=unknown) is None
