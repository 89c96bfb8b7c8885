"""How often good critiques are refused, and false results noticed.

Wrong traces are made of GSM8K's worked solutions: a slip in one step is carried on to the end. The
critique repeats the steps before it and goes on in the human solution's own words; some of them get
other typography, or a concluding step without an equation, as human and model texts have. For the
second figure a result is changed in an otherwise right step and not carried on.

    python tests/benchmarks/validation.py path/to/gsm8k/train.jsonl
"""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from _measure import report

from sdcore.critics.corruption import corrupted_gsm8k, gsm8k_solution
from sdcore.critics.llm import judge
from sdcore.critics.validation import Submission
from sdcore.grading.equations import false_equation, value
from sdcore.traces import render_trace

TRACES, REFUSED, NOTICED, NOTICED_LATEX, FLAGGED = 2_000, 0.03, 0.90, 0.60, 0.001
LATEX = Path(__file__).parents[1] / "data" / "latex_steps.txt"

_NOTE = re.compile(r"<<([^<>=\n]+)=([^<>=\n]+)>>")
_RESULT = re.compile(r"\s*\$?\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)(?![\d/:]|,\d)")
_LATEX_RESULT = re.compile(r"=(?:[^\d=]|\\frac\{)*?(\d+(?:(?:\{,\}|,)\d{3})*(?:\.\d+)?)(?!.*=)")
_TYPOGRAPHY = (
    (" x ", " × "), (" * ", " × "), (" / ", " ÷ "), (" - ", " – "), ("'", "’"), ('"', "“"),
)  # fmt: skip
_CONCLUSIONS = (
    "So the answer that was asked for is {}.", "That comes to {} in all.",
    "Therefore, the result for everyone together is {}.",
)  # fmt: skip


def main(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    reasons = list(islice(refusals(rows, random.Random(0)), TRACES))
    refused = sum(reason is not None for reason in reasons) / max(len(reasons), 1)
    true, planted = planted_gsm8k(rows, random.Random(1))
    flagged, noticed = share(true), share(planted)
    latex = LATEX.read_text("utf-8").splitlines()
    noticed_latex = share(planted_latex(latex, random.Random(2)))
    flagged_latex = share(latex)
    report(
        "validation",
        refused,
        f"at most {REFUSED:.0%} of good critiques refused; at least {NOTICED:.0%} of false results "
        f"noticed, {NOTICED_LATEX:.0%} in LaTeX; at most {FLAGGED:.1%} of true steps flagged",
        refused <= REFUSED
        and noticed >= NOTICED
        and noticed_latex >= NOTICED_LATEX
        and max(flagged, flagged_latex) <= FLAGGED,
        critiques=len(reasons),
        refused=refused,
        reasons=Counter(kind(reason) for reason in reasons if reason),
        planted=len(planted),
        noticed=noticed,
        latex_steps=len(latex),
        noticed_latex=noticed_latex,
        true_steps=len(true),
        flagged=flagged,
        flagged_latex=flagged_latex,
    )


def refusals(rows: list[dict[str, str]], rng: random.Random) -> Iterator[str | None]:
    """For each critique the reason why it is refused, None for one that is taken."""
    for row in rng.sample(rows, len(rows)):
        wrong = corrupted_gsm8k(row["question"], row["answer"], rng)
        right = gsm8k_solution(row["answer"])
        if wrong is None or wrong.first_wrong_step is None or any(map(false_equation, right.steps)):
            continue
        kept = wrong.first_wrong_step - 1
        new = list(right.steps[kept:])
        if rng.random() < 0.5:
            new = [retyped(step) for step in new]
        if rng.random() < 0.25:
            new.append(rng.choice(_CONCLUSIONS).format(right.answer))
        corrected = render_trace([*wrong.steps[:kept], *new], right.answer)
        handed = Submission(
            row["question"], render_trace(wrong.steps, wrong.answer), False, right.answer
        )
        claims = {"case": "D", "first_wrong_step": kept + 1, "corrected": corrected}
        yield judge(json.dumps(claims), handed).invalid_reason


def retyped(step: str) -> str:
    """A step with typographic signs."""
    for plain, sign in _TYPOGRAPHY:
        step = step.replace(plain, sign)
    return step


def planted_gsm8k(rows: list[dict[str, str]], rng: random.Random) -> tuple[list[str], list[str]]:
    """Steps whose calculator notes are all right, and the same with one result changed."""
    true, planted = [], []
    for line in (line for row in rows for line in row["answer"].splitlines()):
        notes = list(_NOTE.finditer(line))
        places = [(note, _RESULT.match(line, note.end())) for note in notes]
        written = all(place and value(place[1]) == value(note[2]) for note, place in places)
        if not notes or not written or any(value(n[1]) != value(n[2]) for n in notes):
            continue
        true.append(_NOTE.sub("", line))
        _, place = rng.choice(places)
        assert place is not None
        changed = line[: place.start(1)] + slip(place[1], rng) + line[place.end(1) :]
        planted.append(_NOTE.sub("", changed))
    return true, planted


def planted_latex(steps: list[str], rng: random.Random) -> list[str]:
    """Steps in LaTeX with the last result changed."""
    places = [(step, _LATEX_RESULT.search(step)) for step in steps]
    return [
        step[: place.start(1)] + slip(place[1], rng) + step[place.end(1) :]
        for step, place in places
        if place
    ]


def slip(number_text: str, rng: random.Random) -> str:
    """Another number with as many decimal places."""
    plain = number_text.replace("{,}", "").replace(",", "")
    places = len(plain.partition(".")[2])
    new = plain
    while float(new) == float(plain):
        factor = rng.choice((0.5, 0.9, 1.1, 2))
        offset = rng.choice((1, -1, 2, -2, 10, -10)) * 10**-places
        changed = float(plain) * factor if rng.random() < 0.5 else float(plain) + offset
        new = f"{abs(changed):.{places}f}"
    return new


def share(steps: list[str]) -> float:
    """Share of steps in which something false is noticed."""
    return sum(false_equation(step) is not None for step in steps) / max(len(steps), 1)


def kind(reason: str) -> str:
    """A reason without its numbers and quotes."""
    return re.sub(r"[\d.,]+|'.*|: .*", "", reason).strip()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:  # `make bench` has no file to give
        sys.stderr.write("validation: left out, since it needs the path of GSM8K's train.jsonl\n")
