"""Find questions and references that do not fit into the model, before anything is sampled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdcore.config import PromptsConfig
from sdcore.contexts import Context, ContextInputs
from sdcore.models.prompts import Tokenizer, student_prompt, teacher_prompt
from sdcore.slips import wrong_solution
from sdcore.traces import render_trace


@dataclass(frozen=True)
class Room:
    """Room for prompts and responses, in tokens.

    Attributes:
        tokenizer: with a frozen clock, if its chat template reads one.
        prompts: the experiment's templates.
        contexts: what the teacher may be shown. Only those count that a problem alone determines:
            how long a critique or another rollout will be is not known yet.
        new_tokens: longest response.
        student: longest prompt and response in sampling; None means no limit.
        teacher: longest prompt and response in training; None means no limit.
    """

    tokenizer: Tokenizer
    prompts: PromptsConfig
    contexts: Sequence[Context]
    new_tokens: int
    student: int | None
    teacher: int | None

    def excess(
        self, question: str, solution: str | None, reference: str, *, taught: bool
    ) -> str | None:
        """Return why a problem does not fit, or None if it does.

        Args:
            question: shown to student and teacher.
            solution: worked reference solution; None where the source has none.
            reference: the reference's final answer.
            taught: the problem is trained on, so that the teacher sees it too.

        Raises:
            ConfigError: a template does not render.
        """
        for name, tokens, limit in self._prompts(question, solution, reference, taught=taught):
            if limit is not None and tokens + self.new_tokens > limit:
                return (
                    f"{name} has {tokens} tokens: with {self.new_tokens} new ones "
                    f"(sampling.max_new_tokens) that exceeds the model's {limit}"
                )
        return None

    def _prompts(
        self, question: str, solution: str | None, reference: str, *, taught: bool
    ) -> Iterator[tuple[str, int, int | None]]:
        """Name, tokens and limit of each prompt."""
        asked = len(student_prompt(self.tokenizer, self.prompts, question))
        yield "the student's prompt", asked, self.student
        if not taught:
            return
        yield "the student's prompt", asked, self.teacher
        trace = render_trace([reference], reference)  # shorter than any that will be sampled
        wrong = wrong_solution(question, solution, reference) if solution else None
        inputs = ContextInputs(
            question, solution, reference, trace, correct=True, wrong_solution=wrong
        )
        for context in self.contexts:
            if context.available(inputs):
                text = context.build(inputs)
                shown = len(teacher_prompt(self.tokenizer, self.prompts, question, text))
                yield f"the teacher's prompt with context {context.name!r}", shown, self.teacher
