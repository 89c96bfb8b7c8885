"""Mixed policies with a scripted solver, which errs in its second step without a hint."""

import pytest

from sdcore.analysis import preflight
from sdcore.engines import Completion
from sdcore.store.schema import TABLES
from sdcore.testing import ScriptedEngine
from tasks.run.condition_run import ConditionRun
from tasks.run.session import Session
from tasks.teacher import sample_teacher
from tests.helpers.example import EXPERIMENT, critique, lineage, policy, problem, rollout

STEPS = ("12+30=42", "42-5=37", "37+1=38")
QUESTION, TEACHER = "12 + 30 - 5 + 1 = ?", "Hint: 12 + 30 - 5 + 1 = ?"
WRONG = (
    "<step_1>12+30=42</step_1><step_2>42-5=36</step_2><step_3>36+1=37</step_3><answer>37</answer>"
)
SEEN = EXPERIMENT.model_copy(
    update={
        "diagnose": EXPERIMENT.diagnose.model_copy(
            update={"contexts": ("reference",), "rollouts": 1, "teacher_samples": 2}
        )
    }
)


def finished(text):
    """How a trace goes on: rightly with the hint; without it the second step is wrong.

    The third step carries on with the second one's value.
    """
    hinted, trace = text.startswith(TEACHER), text.partition("?")[2]
    for number, right in enumerate(STEPS, 1):
        if f"</step_{number}>" in trace:
            continue
        slips = not hinted and (number == 2 or (number == 3 and "=36" in trace))
        step = {2: "42-5=36", 3: "36+1=37"}[number] if slips else right
        trace += f"<step_{number}>{step}</step_{number}>"
    answer = trace.rpartition("=")[2].partition("<")[0]
    return trace.removeprefix(text.partition("?")[2]) + f"<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The rows of `teacher_samples`, the requests, and the findings, of two wrong rollouts."""
    names = ("train0", "train1")
    root = tmp_path_factory.mktemp("mixed")
    with Session(root) as session, pytest.MonkeyPatch.context() as patch:
        run = ConditionRun(session, SEEN, "diagnose", 0)
        encode = run.tokenizer.encode

        def answer(request):
            ids = tuple(encode(finished(run.tokenizer.decode(request.prompt_ids))))
            return Completion(ids, (0.0,) * len(ids), "stop")

        engine = ScriptedEngine(answer)
        patch.setattr(session.models, "engine", lambda *arguments: engine)
        rollouts = [
            rollout("diagnose", 0, "diagnose", 0, name, 0, correct=False)
            | {"text": WRONG, "prompt_ids": encode(QUESTION), "response_ids": encode(WRONG)}
            for name in names
        ]  # fmt: skip
        contexts = [
            lineage("diagnose", 0)
            | {
                "context_id": f"{row['rollout_id']} {name}", "rollout_id": row["rollout_id"],
                "context": name, "text": name, "critique_id": None,
                "teacher_prompt_ids": encode(TEACHER),
            }
            for row in rollouts
            for name in ("none", "reference")
        ]  # fmt: skip
        session.store.append_missing(
            problems=TABLES["problems"].frame([
                problem(name, "train", place, QUESTION) | {"reference": "38"}
                for place, name in enumerate(names)
            ]),
            policies=TABLES["policies"].frame([policy("base", 0, 0)]),
            rollouts=TABLES["rollouts"].frame(rollouts),
            contexts=TABLES["contexts"].frame(contexts),
            critiques=TABLES["critiques"].frame(
                [critique(row, 2) | {"corrected": WRONG} for row in rollouts]
            ),
        )  # fmt: skip
        count = sample_teacher.fn(run)
        asked = [run.tokenizer.decode(each.prompt_ids) for each in engine.requests]
        assert sample_teacher.fn(run) == count and len(engine.requests) == len(asked)
        rows = session.store.rows("teacher_samples")
        planned = preflight.teacher_samples(session.store, SEEN, names)
        assert len(rows) == count == 2 * 2 * 2 * 5
        yield (
            rows,
            asked,
            preflight.teacher_ability.measures(
                session.store, planned, _no_tokens(), SEEN.evaluation
            ),
        )


def _no_tokens():
    names = ("context", "problem_id", "rollout_id", "position", "region", "kl", "correct")
    return (
        TABLES["token_signals"].frame([]).with_columns(problem_id=None, correct=True).select(names)
    )


def test_the_student_goes_on_where_the_mask_ends(sampled):
    rows, asked, _ = sampled
    first, second = (f"<step_{n}>{STEPS[n - 1]}</step_{n}>" for n in (1, 2))
    wrong = first + "<step_2>42-5=36</step_2>"
    mine = rows.filter(context="reference")
    continued = {
        start: {TEACHER + prefix if teacher else QUESTION + prefix}
        for start, teacher, prefix in (
            ("question", True, ""), ("step", True, first), ("error", True, wrong),
            ("after_question", False, first + second), ("after_step", False, first + second),
        )
    }  # fmt: skip
    assert set().union(*continued.values()) <= set(asked)
    ends = {
        start: {text[len(first) :] for text in mine.filter(start=start)["text"]}
        for start in continued
    }
    right = second + "<step_3>37+1=38</step_3><answer>38</answer>"
    assert ends == {
        "question": {right}, "step": {right}, "after_question": {right}, "after_step": {right},
        "error": {"<step_2>42-5=36</step_2><step_3>37+1=38</step_3><answer>38</answer>"},
    }  # fmt: skip


def test_the_bounds_are_those_of_the_script(sampled):
    """The student never is right, wherever it goes on; whatever the teacher writes ends right."""
    rows = {(row["context"], row["measure"]): row for row in sampled[2].iter_rows(named=True)}
    for mask in ("all", "until_error", "error", "from_error", "after"):
        assert rows["reference", f"gain_{mask}"]["value"] == 1
        assert rows["reference", f"added_{mask}"]["value"] == 1
        assert rows["none", f"gain_{mask}"]["value"] == 0
