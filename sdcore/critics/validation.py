"""Rules that a critique must satisfy before the teacher may see it.

`misalignment` holds every critic to the form of the paper (arXiv 2606.11173): the trace verbatim up
to its first error, corrected from there on. `infidelity` refuses what only a language model does:
another notation, remarks on the trace, mentions of the reference, false equalities, answers that
nothing leads to. A rule that lets a leak or a false sum pass lets the model train on it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sdcore.contexts import Critique
from sdcore.grading.answers import grade, plain_number
from sdcore.grading.equations import NUMBER, equations, false_equation, numbers
from sdcore.traces import Trace, parse_trace

LENGTHS = 4.0  # factor by which new steps may be longer or shorter than the solver's, on average
SLACK = 20  # characters allowed on top
LETTERS = 0.4  # allowed difference in the share of letters: it separates formulas from prose
PROSE = 0.25  # share of letters from which steps are prose

# Characters that a critic may bring in: typography and mathematics, no letters or digits
_TYPOGRAPHY = set("–—‘’“”…•′″€£¥¢°×÷·⋅−±≈≠≤≥≡√∛π∞∠△∴→⇒½⅓⅔¼¾⅕⅖⅗⅘⅙⅛⅜⅝⅞²³⁴ \u00a0\u2009\u202f")
_QUOTES = str.maketrans("‘’“”–—−\u00a0\u2009\u202f", "''\"\"---   ")

_TAG = re.compile(
    r"""<\|[^|<>\n]{0,64}\|>                                # <|im_start|>
    | </?[a-z_]\w*(?:\s+[\w-]+\s*=[^<>]*|\s*/)?>             # <think>, <a href="x">, <br/>
    | <!-- | <</?SYS>>
    | \[/?(?:INST|SYSTEM|TOOL\w*|AVAILABLE_TOOLS|PAD|CLS|SEP|MASK|UNK|BOS|EOS)\]  # [INST]
    | ^\s*(?:user|human|assistant|system):                   # Assistant: done
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_SOURCE = r"(?:solutions?|answers?|results?)"
_LEAK = re.compile(
    rf"""
    \b(?:reference|official|model|provided|given|expected|ground[- ]truth|gold|known|desired|
        intended|target|true|actual|stated|worked|sample|published|required|supposed|teacher's|
        book's)\ (?:final\ )?{_SOURCE}\b                        # the worked solution
    | (?<!\d\ )\bcorrect\ {_SOURCE}\b  # the correct answer
    | \b(?:answer|solution)\ (?:key|sheet|manual|book)\b        # as in the answer key
    | \bground[- ]truth\b | \bmark(?:ing)?\ scheme\b | \bback\ of\ the\ book\b
    | \b(?:according\ to|based\ on|as\ in|from|see|per|like|with|match(?:es|ing)?)\ the
        \ (?:worked\ )?(?:reference|solution|answer)\b            # according to the solution
    | \b(?:solution|answer|key|reference)\ (?:says|shows|states|gives|tells|requires|has\ it|has|
        goes|claims|wants|expects|lists|provides|reports|above|below)\b      # the solution shows
    | \b(?:solution|answer|result)\ (?:must|should|has\ to|needs\ to|ought\ to|is\ supposed\ to|
        is\ meant\ to|is\ said\ to|is\ known\ to|is\ expected\ to)\ \w+\b     # the answer must be
    | \b(?:told|given|known?|knowing)\ (?:that\ )?the\ (?:final\ )?{_SOURCE}\b  # knowing the answer
    | \b(?:must|should|has\ to|have\ to|needs?\ to|ought\ to|supposed\ to|meant\ to|want\ to)\ (?:
        end\ up|come\ out|work\ out|arrive|land|match|lead\ to|result\ in)\b  # has to end up with 3
    | \bwork(?:ing)?\ backwards?\b                               # working backwards from 34
    | \bto\ (?:get|arrive|come|end\ up)\ (?:to|at|with)\ the\ (?:final\ )?{_SOURCE}\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_FAULT = r"(?:mistakes?|errors?|erroneous(?:ly)?|incorrect(?:ly)?|wrong(?:ly)?)"
_REMARK = re.compile(
    rf"""
    \b{_FAULT}\b | \b(?:miscalculat|miscount|misread)\w+          # the mistake was here
    | \b(?:correct(?:ed|ing|ion)|oops|sorry|hmm|please)\b
    | \bfix(?:ed|ing)\ (?:this|that|it|the\ (?:\w+\ )?(?:result|sum|step|value|total|calculation))\b
    | \b(?:is|was|were)\ off\ by\b                               # the sum was off by ten
    | \b(?:value|result|sum)\ (?:is|was)\ too\ (?:high|low|large|small|big)\b
    | \bth(?:is|at|e)\ (?:step|line)\ should\b                    # this step should read 39
    | (?:^|[.;:!?]\ +)(?:wait|actually|no)\b(?=\W)(?!\ \w+\ (?:for|until)\b)   # Wait, he really has
    | (?<!\bthe\ )(?<!\ba\ )\bwait(?=[,!]) | \bactually,           # so wait, it is
    | \b(?:previous|original|solver'?s?|student'?s?|your|earlier|first)\ (?:
        attempt|trace|answer|solution|try)\b                      # unlike your answer
    | \b(?:previous|original|solver'?s?|student'?s?|your|earlier)\ steps?\b
    | \b(?:should|must)\ (?:be|have\ been)\b[^.]{{0,40}}\b(?:not|instead)\b   # should be 39, not 38
    | (?:[,;:(]|\band)\ ?not\ \W?\d                              # 39, not 38
    | \b(?:instead\ of|rather\ than)\ \W?\d                      # 39 rather than 38
    | \byou\ (?:forgot|missed|omitted|skipped|overlooked|left\ out|wrote|said|did\ not|didn't|
        should\ have|made\ an?)\b                                # you forgot the pens
    | \b(?:was|were|is|are|been|be|got)\ (?:left\ out|omitted|overlooked|forgotten|neglected)\b
    | \b(?:missed|missing|forgotten|ignored|skipped|dropped|left\ out)\ (?:above|before|earlier|
        previously|so\ far|last\ time|in\ the\ (?:first|last|previous|trace))\b  # missed above
    | \b(?:this|next)\ time\ *(?=[.,;:!)]|$)                     # include them this time.
    | \bforg[eo]t(?:ten|ting|s)?\ (?:to|about|that|the|those|these|them)\ (?:
        includ|add|count|subtract|multipl|divid|step|part)\w*      # forgot to include
    | \bdouble[- ]?check\w*                                       # let me double-check
    | \bre-?(?:check|calculat|comput|consider|examin|evaluat|think|do\b|verif)\w*  # recalculate
    | \bredo(?:ing|ne)\b
    | \blet\ (?:me|us)\ (?:check|verify|fix|correct|try|redo|see|think|look|go\ back)\b
    | \blet's\ (?:check|verify|fix|correct|try\ again|redo|think\ again|go\ back)\b
    | \b(?:this|that|it|which|result|answer|everything)\ (?:is|looks|seems|was)\ (?:right|correct)\b
    | \bchecks?\ out\b | \bon\ second\ thought\b | \bhold\ on\b | \bmy\ bad\b
    | \bI\ (?:made|forgot|missed|mis\w+|should\ have|see\ that)\b   # I missed that
    | \bthe\ (?:solver|student|trace)\b
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
# Words of everyday problems that would be remarks elsewhere
_EVERYDAY = re.compile(
    rf"""
    (?:\b\d+%?|\b(?:many|few|fewer|more|less|no|all|each|per|every|two|three|four|five|six)
        |\bnumber\ of)\ (?:(?!is\b|was\b|are\b|were\b)[\w-]+\ ){{0,3}}{_FAULT}\b  # 6 items wrong
    | \b(?:gets?|got|getting|answer\w*|spell\w*|does|did|guess\w*)\ (?:\S+\ ){{0,3}}
        (?:wrong|incorrectly)\b                                   # got half of them wrong
    | \bwrong\ (?:questions?|answers?|way|train|bus|turn|direction|size|address|number|order|road)\b
    | \b{_FAULT}\ (?:per|each|on\ (?:each|the|his|her|their)|in\ (?:each|every|his|her|their))\b
    | \bcorrect(?:ed|ing)\ (?:\S+\ ){{0,2}}(?:papers?|tests?|exams?|essays?|homeworks?|quizzes)\b
    | \b(?:student|solver)'?s?\ answers?\ \d
    """,
    re.IGNORECASE | re.VERBOSE,
)
_RESULT = re.compile(rf"=\s*[-$€£]*({NUMBER.pattern})")
_REASON = re.compile(
    r"\b(?:since|because|round\w*|whole|half|twice|double|both|cannot|can't|must|not|than|minus|plus|"
    r"times|[a-z](?=\ ?=))\b",
    re.IGNORECASE,
)
_SPELT = re.compile(  # a question may give numbers in words: two, a dozen, a week of 7 days
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|hundred|dozen|half|twice|"
    r"third|quarter|double|triple|couple|pair|week|year|day|hour|month)s?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Submission:
    """A trace to criticise, and what is known about it."""

    question: str
    trace: str
    correct: bool | None  # its final answer is right; None where that is withheld
    reference: str | None  # the final answer; None where unknown or withheld
    solution: str | None = None  # worked reference solution


def misalignment(critique: Critique, submission: Submission) -> str | None:
    """Return why a critique is not step-aligned with its trace; None where it is."""
    trace, corrected = parse_trace(submission.trace), parse_trace(critique.corrected or "")
    reference = submission.reference
    if not corrected.well_formed:
        return f"the corrected trace is not well-formed: {corrected.flaw}"
    if reference is not None and not grade(corrected.answer, reference).correct:
        return f"the corrected trace ends in {corrected.answer}, the reference in {reference}"
    if critique.case is None:
        return "no case is named"
    if submission.correct is not None and (critique.case in "AB") != submission.correct:
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
    """Return why a language model's aligned critique may not be shown; None where it may."""
    trace, corrected = parse_trace(submission.trace), parse_trace(critique.corrected or "")
    known = {step.text for step in trace.steps}
    new = [step.text for step in corrected.steps if step.text not in known]
    given = f"{submission.question}\n{trace.text}\n{submission.reference}"
    written = "\n".join([*new, corrected.answer or ""])
    return (
        _inconsistent(critique, trace, corrected)
        or _idle(critique, trace, corrected)
        or _quoted(critique, trace, corrected)
        or _named(critique, submission.question, trace, corrected)
        or _spoken(given, written)
        or _foreign(given, written)
        or _other_notation(new, [step.text for step in trace.steps if step.text.strip()])
        or _false_sum(corrected)
        or _unfounded(critique, corrected)
        or _underived(new, submission.question, corrected)
    )


def verbatim_prefix(critique: Critique, trace: Trace) -> str:
    """The leading whole steps that the corrected trace repeats character for character."""
    wholes = [trace.text, *(prefix(trace, kept) for kept in range(len(trace.steps), -1, -1))]
    return next(whole for whole in wholes if (critique.corrected or "").startswith(whole))


def prefix(trace: Trace, kept: int) -> str:
    """Text of the first `kept` steps, with what stands between them."""
    return trace.text[: trace.steps[kept - 1].outer_end] if kept else ""


def in_order(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Return whether all of `part` occur in `whole`, in that order."""
    remaining = iter(whole)
    return all(text in remaining for text in part)  # `in` moves on past what it finds


def _misplaced(trace: Trace, corrected: Trace, first_wrong: int) -> str | None:
    """Refuse a prefix that is not verbatim, and a wrong step that is quoted after it."""
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
    """Refuse claims that contradict each other; an unfinished step may be left out."""
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


def _idle(critique: Critique, trace: Trace, corrected: Trace) -> str | None:
    """Refuse a missing step that is a remark at the end, and a wrong one that is only reworded."""
    own = [step.text for step in trace.steps[: trace.sound]]
    theirs = [step.text for step in corrected.steps]
    wrong = critique.first_wrong_step
    if critique.case == "B" and wrong is None:
        answer = plain_number(trace.answer or "")
        whole = own and answer is not None and abs(answer) in numbers(own[-1])
        missing = theirs[: theirs.index(own[-1])] if whole else theirs
        if not {*missing} - {*own}:
            return "case B, but no step was missing"
    elif wrong is not None and wrong <= min(len(own), len(theirs)):
        before, after = own[wrong - 1], theirs[wrong - 1]
        stated = [[(each.left, each.right, each.holds) for each in equations(text)]
                  for text in (before, after)]  # fmt: skip
        if stated[0] and stated[0] == stated[1] and {*numbers(before)} == {*numbers(after)}:
            return f"step {wrong} is called wrong, but rewritten with the same equations"
    return None


def _quoted(critique: Critique, trace: Trace, corrected: Trace) -> str | None:
    """Refuse a quote of the wrong step, whatever its white space and capitals."""
    if critique.first_wrong_step is None:
        return None
    kept = len(prefix(trace, min(critique.first_wrong_step - 1, trace.sound)))
    wrong = "".join(trace.steps[critique.first_wrong_step - 1].text.split())
    spaced = r"\s*".join(map(re.escape, wrong))
    quote = re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)
    found = bool(wrong) and bool(quote.search(corrected.text, kept))
    return f"step {critique.first_wrong_step} is wrong, but quoted" if found else None


def _named(critique: Critique, question: str, trace: Trace, corrected: Trace) -> str | None:
    """Refuse a rewritten step that names the result of the wrong one."""
    wrong = critique.first_wrong_step
    if wrong is None:
        return None
    if wrong > len(corrected.steps):
        return f"step {wrong} is wrong, but not rewritten"
    rewritten = corrected.steps[wrong - 1].text
    results = numbers(" ".join(_RESULT.findall(trace.steps[wrong - 1].text)))
    kept = f"{question} {prefix(trace, wrong - 1)} {corrected.answer}"
    stated = {*numbers(kept), *numbers(" ".join(_RESULT.findall(rewritten)))}
    if results and results[-1] in numbers(rewritten) and results[-1] not in stated:
        return f"step {wrong} is wrong, but its result {results[-1]} is named"
    return None


def _spoken(given: str, new: str) -> str | None:
    """Refuse new text that speaks of the reference or the trace in words that are not given."""
    if tag := _first(_TAG, new, given, re.compile(r"(?!)")):
        return f"tags or control tokens in a step: {tag!r}"
    given, new = _plain(given), "\n".join(map(_plain, new.splitlines()))
    if leak := _first(_LEAK, new, given, _EVERYDAY):
        return f"the reference is spoken of: {leak!r}"
    if remark := _first(_REMARK, new, given, _EVERYDAY):
        return f"a remark on the trace, not a step of it: {remark!r}"
    return None


def _first(pattern: re.Pattern[str], new: str, given: str, allowed: re.Pattern[str]) -> str | None:
    """The first match in new text that is neither given nor within an allowed phrase."""
    spans = [match.span() for match in allowed.finditer(new)]
    for match in pattern.finditer(new):
        everyday = any(start <= match.start() and match.end() <= end for start, end in spans)
        if not everyday and match[0].strip(" .;:!?,(").casefold() not in given.casefold():
            return match[0].strip()
    return None


def _plain(text: str) -> str:
    """A text with plain quotes, dashes and single spaces."""
    return " ".join(text.translate(_QUOTES).split())


def _foreign(given: str, new: str) -> str | None:
    """Refuse characters that are neither given, plain ASCII nor typography: a look-alike, say."""
    plain = {*given, *"\n\t", *map(chr, range(32, 127))} | _TYPOGRAPHY
    odd = next((char for char in new if char not in plain), None)
    return odd and f"new steps are in another notation: the character {odd!a}"


def _other_notation(new: list[str], own: list[str]) -> str | None:
    """Refuse new steps that are not written as the solver writes; both must be there to compare."""
    if not new or not own:
        return None
    mine, theirs = fmean(map(len, own)), fmean(map(len, new))
    if not mine / LENGTHS - SLACK <= theirs <= mine * LENGTHS + SLACK:
        return f"new steps have {theirs:.0f} characters on average, the solver's {mine:.0f}"
    if len(new) > 2 * len(own) + 2:
        return f"{len(new)} new steps, but the solver wrote {len(own)} in all"
    if abs(letters(new) - letters(own)) > LETTERS:
        return "new steps are in another notation: words against formulas"
    if "\\" in "".join(new) and "\\" not in "".join(own):
        return "new steps are in another notation: LaTeX"
    prose = letters(own) >= PROSE  # among sentences, one may do without =
    short = [step for step in new if "=" not in step and not (prose and len(step.split()) > 3)]
    if short and len(own) > 1 and all("=" in step for step in own):
        return "new steps are in another notation: one without ="
    return None


def letters(steps: Sequence[str]) -> float:
    """Return the share of letters in what is not white space."""
    text = "".join("".join(steps).split())
    return sum(char.isalpha() for char in text) / max(len(text), 1)


def _false_sum(corrected: Trace) -> str | None:
    """Refuse a step that does not hold: a new one, or a copied one that is thereby called right."""
    equations = (false_equation(step.text) for step in corrected.steps)
    found = next(filter(None, equations), None)
    return f"a step of the corrected trace does not hold: {found}" if found else None


def _unfounded(critique: Critique, corrected: Trace) -> str | None:
    """Refuse a changed trace whose last step does not come to its numeric answer."""
    answer = plain_number(corrected.answer or "")
    if critique.case == "A" or answer is None or abs(answer) in numbers(corrected.steps[-1].text):
        return None
    return f"the last step does not come to the answer {corrected.answer}"


def _underived(new: list[str], question: str, corrected: Trace) -> str | None:
    """Refuse new steps that use nothing that is known, as in "The number of vans is = 9."."""
    answer = plain_number(corrected.answer or "")
    kept = " ".join(step.text for step in corrected.steps if step.text not in new)
    if not new or answer is None or abs(answer) in numbers(kept):
        return None
    used = {*numbers(" ".join(new))} - {abs(answer), 1}
    known = numbers(f"{question} {kept}")  # also as per cent, in cents, or without its decimals
    derived = (
        used & {way for each in known for way in (each, each * 100, each / 100, each // 1)}
        or (used and (not known or _SPELT.search(question)))
        or (kept and any(map(_REASON.search, new)))
    )
    return None if derived else f"the answer {corrected.answer} is stated, but not derived"
