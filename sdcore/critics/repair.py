"""Repair the form of nearly right critiques without asking again, and note what was done.

Repairs are deterministic and never change what the critic says about the steps; where it says
nothing, its claims are inferred from the difference between the two traces.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher

from sdcore.contexts import Case, Critique
from sdcore.critics.validation import Submission, prefix
from sdcore.grading.answers import grade
from sdcore.grading.equations import numbers
from sdcore.traces import Trace, parse_trace, render_trace

ALIKE = 0.8  # share of equal words from which two steps without numbers count as the same

_TAG = re.compile(r"</?(?:step_\d+|answer)>")
_MARK = re.compile(  # "- ", "* ", "1. ", "Step 2: ", "**Step 2:** "
    r"^(?:[-*•] |\**(?:step ?)?\d{1,3} ?[.:)]\** )", re.IGNORECASE
)
_ANSWER = re.compile(  # "Answer: ", "So the final answer is "
    r"^(?:so |thus,? |therefore,? )?(?:the )?(?:final )?answer(?: is)? ?[:=]? ?", re.IGNORECASE
)


def repair(critique: Critique, submission: Submission) -> Critique:
    """Return the critique with its tags, claims and prefix repaired where only they are wrong."""
    done = []
    for name, fix in _REPAIRS.items():
        repaired = fix(critique, submission)
        if repaired != critique:
            critique = repaired
            done.append(name)
    return replace(critique, repaired=", ".join(done) or None)


def _tagged(critique: Critique, submission: Submission) -> Critique:
    """Tag steps that stand on lines of their own, where the answer is the reference's."""
    text = critique.corrected or ""
    if parse_trace(text).well_formed:
        return critique
    inner = text[max(text.find("<step_1>"), 0) : text.rfind("</answer>") + len("</answer>")]
    if parse_trace(inner).well_formed:  # something was said before or after
        return replace(critique, corrected=inner)
    lines = [" ".join(line.split()) for line in _TAG.sub("\n", text).splitlines()]
    *steps, last = [line for line in lines if line] or [""]
    answer = parse_trace(last).answer or _ANSWER.sub("", last.strip("*")).strip("* ")
    if (
        text.count("<answer>") > 1
        or not steps
        or submission.reference is None
        or not grade(answer, submission.reference).correct
    ):
        return critique
    return replace(critique, corrected=render_trace([_MARK.sub("", s) for s in steps], answer))


def _claimed(critique: Critique, submission: Submission) -> Critique:
    """Infer the claims of a critic that only wrote the corrected trace from its first change."""
    corrected, trace = parse_trace(critique.corrected or ""), parse_trace(submission.trace)
    if critique.case is not None or not corrected.well_formed:
        return critique
    own = [step.text for step in trace.steps[: trace.sound]]
    shared = [*map(_same, own, (step.text for step in corrected.steps)), False].index(False)
    unchanged = trace.well_formed and len(corrected.steps) == shared == len(own)
    if submission.correct or (submission.correct is None and unchanged):
        case: Case = "A" if unchanged else "B"
        return replace(critique, case=case, first_wrong_step=None)
    if shared == len(trace.steps) or (shared == trace.sound and trace.answer is None):
        return replace(critique, case="C", first_wrong_step=None)
    return replace(critique, case="D", first_wrong_step=shared + 1)


def _verbatim(critique: Critique, submission: Submission) -> Critique:
    """Replace a reworded prefix, whose steps map one to one to the solver's, by the original."""
    trace, corrected = parse_trace(submission.trace), parse_trace(critique.corrected or "")
    kept = _kept(critique, trace)
    if kept is None or not corrected.well_formed or len(corrected.steps) < kept:
        return critique
    theirs, rest = corrected.steps[:kept], corrected.steps[kept:]
    if not all(map(_same, (s.text for s in trace.steps), (s.text for s in theirs))):
        return critique
    if critique.case == "A":
        unchanged = not rest and grade(corrected.answer, trace.answer or "").correct
        return replace(critique, corrected=trace.text) if unchanged else critique
    if corrected.text.startswith(prefix(trace, kept)):
        return critique
    tail = render_trace([step.text for step in rest], corrected.answer or "", first=kept + 1)
    return replace(critique, corrected=prefix(trace, kept) + tail)


def _kept(critique: Critique, trace: Trace) -> int | None:
    """Return how many leading steps must be verbatim; None where the claims leave it open."""
    if critique.case == "A":
        return len(trace.steps)
    if critique.first_wrong_step is not None:
        return min(max(critique.first_wrong_step - 1, 0), trace.sound)
    return trace.sound if critique.case in ("C", "D") else None


def _same(mine: str, theirs: str) -> bool:
    """Return whether two steps have the same numbers or, without any, nearly the same words."""
    if numbers(mine) != numbers(theirs):
        return False
    words = SequenceMatcher(None, mine.split(), theirs.split(), autojunk=False)
    return bool(numbers(mine)) or words.ratio() >= ALIKE


_REPAIRS: dict[str, Callable[[Critique, Submission], Critique]] = {
    "tags": _tagged, "claims": _claimed, "prefix": _verbatim,
}  # fmt: skip
