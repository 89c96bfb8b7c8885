"""Whatever comes in, the outcome is a value that keeps its promises, or an error of our own.

Inputs are drawn by hypothesis: a fixed sample as a part of `make test`, many more by
`make test-faults`.
"""

import json
import shutil
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdcore.config import Experiment, ProblemsConfig, load_experiment
from sdcore.contexts import Critique
from sdcore.critics.llm import judge
from sdcore.critics.validation import Submission, infidelity, misalignment
from sdcore.errors import ConfigError, DataError, ModelError, SdcoreError
from sdcore.grading.answers import grade, same_answers
from sdcore.grading.equations import false_equation, value
from sdcore.jinja_sandbox import render
from sdcore.problems.screening import screen
from sdcore.problems.sources import read_records
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace, render_trace
from tests.helpers.example import fill
from tests.helpers.models import use
from tests.helpers.paths import QUICKSTART

ANY = st.text(st.characters(codec="utf-8"), max_size=12)
PIECES = [
    "<step_1>", "</step_1>", "<step_2>", "</step_2>", "<answer>", "</answer>", "<step_0>", "</",
    "\\boxed{", "{", "}", "\\frac", "\\(", "$", "%", "=", "≈", "<", "47+23", "70", "-31", "38",
    "27", "1,080", "1/3", ".5", "1e9", "^", "**", "(", ")", " of ", " km", "−", "×", "x", "\n",
    "\\n", "\0", "</think>", "<|im_end|>", '"', "case", "D", "null", "9" * 30, "²", "٣", "\u200b",
    "\ud7ff",
]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), ANY), max_size=14).map("".join)
GOOD = render_trace(["47+23=70", "70-31=39", "39-12=27"], "27")
WRONG = render_trace(["47+23=70", "70-31=38", "38-12=26"], "26")
SUBMISSION = Submission("Compute 47+23-31-12.", WRONG, correct=False, reference="27")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(ANY, part, max_size=3),
    max_leaves=6,
)


@given(TEXT)
def test_a_trace_keeps_to_its_text(text):
    trace = parse_trace(text)
    assert trace.text == text and trace.well_formed == (trace.flaw is None)
    for step in trace.steps:
        assert 0 <= step.start <= step.end <= step.outer_end <= len(text)
        assert step.text in text[step.start : step.end]
    if trace.answer is not None:
        assert trace.answer and trace.answer in text
    if trace.well_formed:
        again = parse_trace(render_trace([step.text for step in trace.steps], trace.answer))
        assert again.well_formed and again.answer == trace.answer


@given(TEXT, TEXT)
def test_grading_is_a_verdict(answer, reference):
    verdict = grade(answer, reference)
    assert verdict.correct == (verdict.reason is None)
    assert grade(answer, reference) == verdict
    codes = same_answers([answer, reference, answer, None])
    assert codes[0] == codes[2]


@given(st.integers(-(10**9), 10**9), st.integers(1, 6))
def test_a_number_is_itself_and_no_other(number, decimals):
    text = f"{number / 10**decimals:.{decimals}f}"
    assert grade(text, text).correct
    assert not grade(str(number + 1), str(number)).correct


@given(st.integers(0, 999), st.sampled_from("+-*/"), st.integers(1, 99), st.integers(-9, 9))
def test_only_a_false_equation_is_called_false(left, operation, right, off):
    exact = {"+": left + right, "-": left - right, "*": left * right, "/": Fraction(left, right)}
    result = Fraction(exact[operation])
    assume(result.denominator == 1)
    assert value(f"{left}{operation}{right}") == result
    assert (false_equation(f"{left}{operation}{right}={result + off}") is None) == (off == 0)


@given(TEXT)
def test_reading_equations_never_fails(text):
    claim = false_equation(text)
    assert claim is None or claim


@given(st.one_of(
    TEXT,
    JSON.map(json.dumps),
    st.builds(
        lambda case, step, corrected, text: json.dumps(
            {"case": case, "first_wrong_step": step, "corrected": corrected, "explanation": text}
        ),
        st.sampled_from("ABCDEFG") | JSON, st.integers(-2, 5) | JSON,
        st.sampled_from([GOOD, WRONG]) | TEXT | TEXT.map(lambda more: GOOD + more), TEXT,
    ),
))  # fmt: skip
def test_what_a_critic_says_is_aligned_or_refused(text):
    critique = judge(text, SUBMISSION)
    assert isinstance(critique, Critique)
    if critique.valid:
        assert misalignment(critique, SUBMISSION) is None
        assert infidelity(critique, SUBMISSION) is None
        assert parse_trace(critique.corrected).answer == "27"
    else:
        assert critique.invalid_reason and critique.corrected is None


def _paths(settings: dict[str, object], before: str = "") -> list[str]:
    return [
        path
        for name, setting in settings.items()
        for path in (
            _paths(setting, f"{before}{name}.") if isinstance(setting, dict) and setting
            else [f"{before}{name}"]
        )
    ]  # fmt: skip


PATHS = _paths(load_experiment(QUICKSTART).model_dump(mode="json"))


@given(
    st.sampled_from(PATHS) | ANY,
    st.one_of(
        ANY, JSON.map(lambda found: json.dumps(found, ensure_ascii=False)),
        st.sampled_from(["-1", "0", "1e400", "nan", "-inf", "1e23", "[]", "{}", '""', "true"]),
    ),
)  # fmt: skip
def test_a_setting_is_taken_as_it_is_or_refused(path, text):
    try:
        experiment = load_experiment(QUICKSTART, [f"{path}={text}"])
    except ConfigError as error:
        assert error.what and len(str(error)) < 5000
        return
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert again == experiment and again.experiment_id == experiment.experiment_id


CONTENT = st.one_of(
    st.binary(max_size=60),
    st.lists(JSON.map(json.dumps), max_size=4).map(
        lambda lines: "\n".join(lines).encode()
    ),
    st.builds(
        lambda question, answer: json.dumps({"question": question, "answer": answer}).encode(),
        JSON, JSON,
    ),
    TEXT.map(lambda text: f"question,answer\n{text},{text}".encode(errors="surrogateescape")),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@given(content=CONTENT)
def test_a_file_of_problems_is_read_or_refused(kind, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"problems.{kind}"
    path.write_bytes(content)
    config = ProblemsConfig(source=kind, path=path)
    try:
        problems, _ = screen(list(read_records(config)), config)
    except DataError as error:
        assert error.what and len(str(error)) < 5000
        return
    for problem in problems:
        assert problem.question.strip() and problem.reference.strip()


@given(TEXT | st.sampled_from(["{{ question", "{% for i in x %}", "{{ ''.__class__ }}"]))
def test_a_template_is_compiled_or_refused(text):
    try:
        rendered = render(text, question="q", context="c")
    except SdcoreError as error:
        assert error.what
        return
    assert isinstance(rendered, str)


@given(data=st.data())
def test_a_damaged_model_is_whole_or_refused(model, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(model, folder)
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:  # the header's length and text are where damage hurts
        place = data.draw(st.integers(0, min(len(content), 400) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        use(folder)
    except (ConfigError, ModelError) as error:
        assert error.what and len(str(error)) < 5000


@given(st.lists(st.tuples(ANY, st.integers(-(2**31), 2**31 - 1)), max_size=5))
def test_a_row_is_stored_as_it_is_or_not_at_all(store, rows):
    row = store.rows("problems").row(0, named=True)
    fresh = TABLES["problems"].frame(
        [row | {"experiment_id": "x", "problem_id": name, "position": place}
         for name, place in rows]
    )  # fmt: skip
    before = store.rows("problems", experiment_id="x")
    try:
        store.append_missing(problems=fresh)
    except DataError:
        assert fresh["problem_id"].n_unique() < len(fresh)
        assert store.rows("problems", experiment_id="x").equals(before)
        return
    known = fresh.join(before, on="problem_id", how="anti")
    stored = store.rows("problems", experiment_id="x")
    assert stored.sort("problem_id").equals(pl.concat([before, known]).sort("problem_id"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store(tmp_path_factory.mktemp("store") / "sdcore.duckdb"))
