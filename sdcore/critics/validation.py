"""Is a critique step-aligned with its trace, and may the teacher see it?

`misalignment` holds every critic to the form of the paper (arXiv 2606.11173): the trace verbatim up
to its first error, corrected from there on. `infidelity` refuses what only a language model does:
another notation, remarks on the trace, the reference's name dropped, sums that do not come out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sdcore.contexts import Critique
from sdcore.grading.answers import grade, plain_number
from sdcore.grading.equations import NUMBER, false_equation, numbers
from sdcore.traces import Trace, parse_trace

LENGTHS = 4.0  # so many times longer or shorter may new steps be than the solver's, on average
SLACK = 20  # and so many characters on top
LETTERS = 0.4  # difference in the share of letters, between formulas and prose

_TAG = re.compile(
    r"<\|[^|<>\n]{0,64}\|>|</?[a-z_]\w*(?:\s+[\w-]+\s*=[^<>]*|\s*/)?>|<!--|<</?SYS>>|"
    r"\[/?(?:INST|SYSTEM|TOOL\w*|AVAILABLE_TOOLS|PAD|CLS|SEP|MASK|UNK|BOS|EOS)\]|"
    r"^\s*(?:user|human|assistant|system):",
    re.IGNORECASE | re.MULTILINE,
)
_LEAK = re.compile(
    r"\b(?:reference|official|model|provided|given|expected|ground[- ]truth|gold|correct|known|"
    r"desired|intended|target|true|actual|stated) (?:solution|answer|result)s?\b|"
    r"\b(?:answer|solution) key\b|\bground[- ]truth\b|"
    r"\b(?:according to|as in|from|see|per|match(?:es|ing)?) the (?:reference|solution|answer)\b|"
    r"\b(?:solution|answer|key|reference) "
    r"(?:says|shows|states|gives|tells|requires|above|below|(?:must|should|has to|needs to) be)\b|"
    r"\b(?:told|given|know|known) (?:that )?the (?:final )?(?:answer|solution|result)\b",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\b(?:mistakes?|errors?|erroneous(?:ly)?|incorrect(?:ly)?|wrong(?:ly)?|miscalculat\w+|"
    r"corrected|correction|wait|oops|sorry|actually)\b|"
    r"\b(?:previous|original|solver'?s?|student'?s?|your|earlier) "
    r"(?:steps?|attempt|trace|answer|solution)\b|"
    r"\b(?:should|must) (?:be|have been)\b[^.]{0,40}\b(?:not|instead)\b|"
    r"(?:[,;:(]|\band) ?not \W?\d|\b(?:instead of|rather than) \W?\d",
    re.IGNORECASE,
)
_RESULT = re.compile(rf"=\s*[-$]*({NUMBER.pattern})")


@dataclass(frozen=True)
class Submission:
    """One trace that is handed to a critic, and what is known of it."""

    question: str
    trace: str
    correct: bool  # its final answer is right
    reference: str | None  # the final answer; None where unknown
    solution: str | None = None  # worked reference solution


def misalignment(critique: Critique, submission: Submission) -> str | None:
    """Why a critique is not step-aligned with the trace; None where it is."""
    trace, corrected = parse_trace(submission.trace), parse_trace(critique.corrected or "")
    reference = submission.reference
    if not corrected.well_formed:
        return f"the corrected trace is not well-formed: {corrected.flaw}"
    if reference is not None and not grade(corrected.answer, reference).correct:
        return f"the corrected trace ends in {corrected.answer}, the reference in {reference}"
    if critique.case is None or (critique.case in "AB") != submission.correct:
        verdict = "right" if submission.correct else "wrong"
        return f"case {critique.case}, but the trace's answer is {verdict}"
    if critique.case == "A":
        return None if corrected.text == trace.text else "case A, but the trace was changed"
    if critique.first_wrong_step is None:
        right_steps = [step.text for step in trace.steps[: trace.sound]]
        kept = in_order(right_steps, [step.text for step in corrected.steps])
        return None if kept else "a right step is not repeated verbatim and in order"
    return _misplaced(trace, corrected, critique.first_wrong_step)


def infidelity(critique: Critique, submission: Submission) -> str | None:
    """Why an aligned critique by a language model may not be shown; None where it may."""
    trace, corrected = parse_trace(submission.trace), parse_trace(critique.corrected or "")
    known = {step.text for step in trace.steps}
    new = [step.text for step in corrected.steps if step.text not in known]
    given = f"{submission.question}\n{trace.text}\n{submission.reference}"
    written = "\n".join([*new, corrected.answer or ""])
    return (
        _inconsistent(critique, trace, corrected)
        or _quoted(critique, trace, corrected)
        or _named(critique, submission.question, trace, corrected)
        or _spoken(given, written)
        or _foreign(given, written)
        or _other_notation(new, [step.text for step in trace.steps if step.text.strip()])
        or _false_sum(corrected)
        or _unfounded(critique, corrected)
    )


def verbatim_prefix(critique: Critique, trace: Trace) -> str:
    """The leading whole steps that the corrected trace repeats character for character."""
    wholes = [trace.text, *(prefix(trace, kept) for kept in range(len(trace.steps), -1, -1))]
    return next(whole for whole in wholes if (critique.corrected or "").startswith(whole))


def prefix(trace: Trace, kept: int) -> str:
    """The text of the first `kept` steps, with what is between them."""
    return trace.text[: trace.steps[kept - 1].outer_end] if kept else ""


def in_order(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether all of `part` occur in `whole`, in that order."""
    remaining = iter(whole)
    return all(text in remaining for text in part)  # `in` moves on past what it finds


def _misplaced(trace: Trace, corrected: Trace, first_wrong: int) -> str | None:
    """Whether the prefix is not verbatim, or the wrong step is quoted after it."""
    if not 1 <= first_wrong <= len(trace.steps):
        return f"step {first_wrong} is called wrong, but the trace has {len(trace.steps)} steps"
    kept = prefix(trace, min(first_wrong - 1, trace.sound))
    if not corrected.text.startswith(kept):
        return f"the steps before step {first_wrong} are not repeated verbatim"
    wrong = trace.steps[first_wrong - 1]
    quote = rf"(?<!\w){re.escape(wrong.text.strip())}(?!\w)"
    if wrong.closed and wrong.text.strip() and re.search(quote, corrected.text[len(kept) :]):
        return f"step {first_wrong} is wrong, but quoted"
    return None


def _inconsistent(critique: Critique, trace: Trace, corrected: Trace) -> str | None:
    """Whether the claims contradict each other; an unfinished step may be left out."""
    case, wrong = critique.case, critique.first_wrong_step
    if case in ("A", "C") and wrong is not None:
        return f"case {case}, but step {wrong} is called wrong"
    own = [step.text for step in trace.steps[: trace.sound]]
    theirs = [step.text for step in corrected.steps]
    if case == "D" and wrong is None and theirs != own:
        return "case D and no step is called wrong, but the steps were changed"
    if case == "C" and theirs[: len(own)] != own:
        return "case C, but the finished steps are not repeated first"
    return None


def _quoted(critique: Critique, trace: Trace, corrected: Trace) -> str | None:
    """Whether the wrong step is quoted but for white space and capitals."""
    if critique.first_wrong_step is None:
        return None
    kept = len(prefix(trace, min(critique.first_wrong_step - 1, trace.sound)))
    wrong = "".join(trace.steps[critique.first_wrong_step - 1].text.split())
    spaced = r"\s*".join(map(re.escape, wrong))
    quote = re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)
    found = bool(wrong) and bool(quote.search(corrected.text, kept))
    return f"step {critique.first_wrong_step} is wrong, but quoted" if found else None


def _named(critique: Critique, question: str, trace: Trace, corrected: Trace) -> str | None:
    """Whether the step that is written anew names the result that the wrong one came to."""
    wrong = critique.first_wrong_step
    if wrong is None:
        return None
    if wrong > len(corrected.steps):
        return f"step {wrong} is wrong, but not written anew"
    anew = corrected.steps[wrong - 1].text
    results = numbers(" ".join(_RESULT.findall(trace.steps[wrong - 1].text)))
    kept = f"{question} {prefix(trace, wrong - 1)} {corrected.answer}"
    stated = {*numbers(kept), *numbers(" ".join(_RESULT.findall(anew)))}
    if results and results[-1] in numbers(anew) and results[-1] not in stated:
        return f"step {wrong} is wrong, but its result {results[-1]} is named"
    return None


def _spoken(given: str, new: str) -> str | None:
    """Whether new text speaks of the reference or the trace in words that are not given."""
    given = given.casefold()
    for pattern, reason in (
        (_TAG, "tags or control tokens in a step"),
        (_LEAK, "the reference is spoken of"),
        (_REMARK, "a remark on the trace, not a step of it"),
    ):
        for match in pattern.finditer(new):
            if match[0].casefold() not in given:
                return f"{reason}: {match[0]!r}"
    return None


def _foreign(given: str, new: str) -> str | None:
    """Whether new text has a character beyond plain ASCII that is not given: a look-alike, say."""
    plain = {*given, *"\n\t", *map(chr, range(32, 127))}
    odd = next((char for char in new if char not in plain), None)
    return odd and f"new steps are in another notation: the character {odd!a}"


def _other_notation(new: list[str], own: list[str]) -> str | None:
    """Whether new steps are not written as the solver writes; both must be there to compare."""
    if not new or not own:
        return None
    mine, theirs = fmean(map(len, own)), fmean(map(len, new))
    if not mine / LENGTHS - SLACK <= theirs <= mine * LENGTHS + SLACK:
        return f"new steps have {theirs:.0f} characters on average, the solver's {mine:.0f}"
    if len(new) > 2 * len(own) + 2:
        return f"{len(new)} new steps, but the solver wrote {len(own)} in all"
    if abs(_letters(new) - _letters(own)) > LETTERS:
        return "new steps are in another notation: words against formulas"
    if "\\" in "".join(new) and "\\" not in "".join(own):
        return "new steps are in another notation: LaTeX"
    if len(own) > 1 and all("=" in step for step in own) and any("=" not in step for step in new):
        return "new steps are in another notation: one without ="
    return None


def _letters(steps: Sequence[str]) -> float:
    """Share of letters in what is not white space."""
    text = "".join("".join(steps).split())
    return sum(char.isalpha() for char in text) / max(len(text), 1)


def _false_sum(corrected: Trace) -> str | None:
    """Whether a step does not hold: a new one, or a copied one that is called right with that."""
    found = next(filter(None, (false_equation(step.text) for step in corrected.steps)), None)
    return f"a step of the corrected trace does not hold: {found}" if found else None


def _unfounded(critique: Critique, corrected: Trace) -> str | None:
    """Whether a numeric answer stands in a changed trace whose last step does not come to it."""
    answer = plain_number(corrected.answer or "")
    if critique.case == "A" or answer is None or abs(answer) in numbers(corrected.steps[-1].text):
        return None
    return f"the last step does not come to the answer {corrected.answer}"
