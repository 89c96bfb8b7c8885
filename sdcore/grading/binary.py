"""The default grader: is the answer in a trace the reference's?"""

from collections.abc import Sequence

from sdcore.grading.answers import grade_many
from sdcore.grading.graders import Response, Reward


def by_answer(responses: Sequence[Response]) -> list[Reward]:
    """Return 1 where the answer in the trace equals the reference, else 0."""
    answers = [response.answer for response in responses]
    grades = grade_many(answers, [response.reference for response in responses])
    return [Reward(float(grade.correct), grade.reason) for grade in grades]
