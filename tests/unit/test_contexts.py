from dataclasses import replace

import pytest

from sdcore.contexts import CONTEXTS, ContextInputs, Critique, template_context
from sdcore.errors import ConfigError, DataError

WRONG = "<step_1>2+3=5</step_1><step_2>5+4=8</step_2><answer>8</answer>"
MENDED = "<step_1>2+3=5</step_1><step_2>5+4=9</step_2><answer>9</answer>"
INPUTS = ContextInputs(
    question="2+3+4?",
    solution="three and four are seven, and two are nine",
    reference="9",
    trace=WRONG,
    correct=False,
    critique=Critique("D", 2, MENDED),
    other_critique=Critique("A", None, "<step_1>1+1=2</step_1><answer>2</answer>"),
    sibling="<step_1>3+4=7</step_1><step_2>2+7=9</step_2><answer>9</answer>",
    other_solution="one and one are two",
    wrong_solution="three and four are eight, and two are ten",
)
RIGHT = replace(INPUTS, trace=MENDED, correct=True, critique=Critique("A", None, MENDED))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", None),
        ("reference", INPUTS.solution),
        ("step_aligned", MENDED),
        ("answer_only", "The correct final answer is 9."),
        ("outcome", "An attempt at this problem was incorrect."),
        ("full_quote", WRONG + "\nFrom step 2 on it should be: "
         "<step_2>5+4=9</step_2><answer>9</answer>"),
        ("omission", "Step 1 is correct. <step_2>5+4=9</step_2><answer>9</answer>"),
        ("sibling", INPUTS.sibling),
        ("shuffled", "<step_1>1+1=2</step_1><answer>2</answer>"),
        ("other_reference", "one and one are two"),
        ("wrong_hint", "three and four are eight, and two are ten"),
    ],
)  # fmt: skip
def test_each_context_of_a_wrong_trace(name, text):
    assert CONTEXTS[name].available(INPUTS)
    assert CONTEXTS[name].build(INPUTS) == text


def test_the_list_above_is_complete_and_every_context_says_what_it_tests():
    assert set(CONTEXTS) == {
        "none", "reference", "step_aligned", "answer_only", "outcome", "full_quote", "omission",
        "sibling", "shuffled", "other_reference", "wrong_hint",
    }  # fmt: skip
    for name, context in CONTEXTS.entries().items():
        assert context.name == name and context.about and context.predicted
        assert context.needs <= ContextInputs.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("step_aligned", MENDED),
        ("outcome", "An attempt at this problem was correct."),
        ("full_quote", MENDED),
        ("omission", "Step 1 is correct. Step 2 is correct. <answer>9</answer>"),
    ],
)
def test_contexts_of_a_right_trace(name, text):
    assert CONTEXTS[name].build(RIGHT) == text


def test_a_truncated_trace_is_quoted_as_far_as_it_goes():
    cut = replace(INPUTS, trace=WRONG[:34], critique=Critique("C", None, MENDED))
    assert CONTEXTS["full_quote"].build(cut).startswith("<step_1>2+3=5</step_1><step_2>5+4=")
    assert CONTEXTS["omission"].build(cut).startswith("Step 1 is correct. <step_2>5+4=9<")
    unclosed = replace(cut, trace=MENDED[: MENDED.index("</step_2>")])
    assert CONTEXTS["omission"].build(unclosed) == CONTEXTS["omission"].build(cut)


@pytest.mark.parametrize("name", [name for name in CONTEXTS for need in CONTEXTS[name].needs])
def test_a_missing_need_is_an_error_that_names_it(name):
    for need in CONTEXTS[name].needs:
        lacking = replace(INPUTS, **{need: None})
        assert not CONTEXTS[name].available(lacking)
        with pytest.raises(DataError, match=f"'{name}' cannot be built[\\s\\S]*{need}"):
            CONTEXTS[name].build(lacking)


@pytest.mark.parametrize("name", ["step_aligned", "full_quote", "omission", "shuffled"])
def test_an_invalid_critique_is_never_shown(name):
    invalid = Critique(None, None, None, valid=False, invalid_reason="quotes the wrong step")
    inputs = replace(INPUTS, critique=invalid)
    assert not CONTEXTS[name].available(inputs)
    with pytest.raises(DataError, match="no valid critique"):
        CONTEXTS[name].build(inputs)


def test_a_template_of_the_users_sees_the_rollout_and_its_critique():
    wrote = "{{ question }} Step {{ critique.first_wrong_step }} of {{ trace }}: {{ solution }}"
    own = template_context("own", wrote)
    assert own.needs == {"critique", "solution"}
    expected = f"2+3+4? Step 2 of {WRONG}: three and four are seven, and two are nine"
    assert own.build(INPUTS) == expected
    assert not own.available(replace(INPUTS, solution=None))
    invalid = Critique(None, None, None, valid=False)
    assert not own.available(replace(INPUTS, critique=invalid))


def test_a_template_may_say_nothing_to_some_rollouts():
    own = template_context("own", "{% if not correct %}Wrong.{% endif %}")
    assert (own.build(INPUTS), own.build(RIGHT)) == ("Wrong.", None)


def test_what_a_rollout_says_is_never_read_as_a_template():
    trace = replace(INPUTS, trace="{{ reference }}{% if %}")
    assert template_context("own", "{{ trace }}").build(trace) == trace.trace


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ reward }}", "no such field[\\s\\S]*reward[\\s\\S]*contexts.own"),
        ("{% if %}", "malformed"),
    ],
)
def test_a_template_that_cannot_work_is_refused_at_once(template, message):
    with pytest.raises(ConfigError, match=message):
        template_context("own", template)


def test_a_template_that_fails_on_some_rollouts_names_the_first_of_them():
    own = template_context("own", "After step {{ critique.first_wrong_step + 0 }}.")
    assert own.build(INPUTS) == "After step 2."
    with pytest.raises(ConfigError, match="NoneType") as caught:
        own.build(RIGHT)
    assert caught.value.where == f"contexts.own, a correct rollout of: {RIGHT.question}"


def test_a_template_stays_in_its_sandbox():
    with pytest.raises(ConfigError, match="does not render"):
        template_context("own", "{{ critique.__class__.__mro__ }}").build(INPUTS)
