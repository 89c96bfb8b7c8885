"""Stage 1 on tiny models: what is refused before anything is sampled, and what stays for ever."""

import json
import shutil
from datetime import date, datetime

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import chat_template_utils

from sdcore.config import Experiment
from sdcore.errors import ConfigError, ModelError, StoreError
from sdcore.models.prompts import student_prompt
from tasks.prepare import prepare
from tasks.run.condition_run import base_run
from tasks.run.session import Session
from tests.helpers.families import characters
from tests.helpers.tiny import flip

BODY = "{% for m in messages %}{{ m.content }}{% endfor %}"
CLOCK = "{{ strftime_now('%d %B %Y') }}|" + BODY
QUESTIONS = ["How much is 1 + 1?", "How much is 2 + 2, added up?" + 60 * " now?"] + [
    f"How much is {n} + {n}?" for n in range(3, 40)
]


@pytest.fixture
def model(tmp_path):
    """A model of 200 positions; every character is a token."""
    tokenizer = characters(CLOCK)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=200, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def experiment(model, **settings) -> Experiment:
    rows = model.parent / "rows.jsonl"
    answers = range(2, 2 * len(QUESTIONS) + 2, 2)
    records = zip(QUESTIONS, answers, strict=True)
    rows.write_text(
        "\n".join(
            json.dumps({"question": q, "answer": str(a), "solution": 10 * f"It is {a}. "})
            for q, a in records
        )
    )
    return Experiment.model_validate(
        {
            "name": "prepared",
            "model": {"name": str(model), "device": "cpu"},
            "problems": {
                "source": "jsonl", "path": str(rows), "train": 4, "validation": 1, "test": 1,
                "checks": {"near_duplicate": 2, "overlap": 2},
            },
            "prompts": {"student": "{{ question }}", "teacher": "{{ student }}|{{ context }}"},
            "sampling": {"max_new_tokens": 32},
            "training": {"rounds": 1, "questions_per_round": 1},
            "conditions": {
                "answer": {"objective": "distill", "context": "answer_only", "learning_rate": 1e-3}
            },
        }
        | settings
    )  # fmt: skip


def prepared(model, **settings):
    """Prepare as one process does; rows of two tables, and the prompt of a question."""
    with Session(model.parent / "runs") as session:
        run = base_run(session, experiment(model, **settings))
        prepare.fn(run)
        rejected = session.store.rows("rejected_problems")
        prompt = student_prompt(run.tokenizer, run.experiment.prompts, "1 + 1?")
        return session.store.rows("experiments"), rejected, run.tokenizer.decode(prompt)


def test_a_run_shows_the_day_of_its_start_for_ever(model, monkeypatch):
    experiments, _, prompt = prepared(model)
    day: date = experiments["created_at"][0].date()
    assert prompt == f"{day:%d %B %Y}|1 + 1?"
    clock = type("Clock", (), {"now": staticmethod(lambda: datetime(2040, 1, 2))})
    monkeypatch.setattr(chat_template_utils, "datetime", clock)
    assert prepared(model)[2] == prompt
    with Session(model.parent / "other") as session:  # a run that starts later shows its own day
        assert base_run(session, experiment(model)).prompt_day >= day


def test_a_question_or_a_reference_that_does_not_fit_is_rejected_with_the_reason(model):
    _, rejected, _ = prepared(model)
    assert rejected.select("row", "kind").rows() == [(2, "too long")]
    assert "student's prompt has" in rejected["reason"][0]
    shown = {"reference": {"objective": "distill", "context": "reference", "learning_rate": 1e-3}}
    with pytest.raises(Exception, match="too few problems") as caught:
        prepared(model, conditions=shown, name="shown", sampling={"max_new_tokens": 80})
    assert "too long" in str(caught.value)  # no train problem has room for its solution
    _, rejected, _ = prepared(
        model, conditions=shown, name="short", sampling={"max_new_tokens": 32}
    )
    assert rejected.filter(experiment_id=rejected["experiment_id"][-1])["row"].to_list() == [2]


ANSWER = {"objective": "distill", "context": "answer_only", "learning_rate": 1e-3}


def test_contexts_made_of_solutions_need_them(model):
    rows = model.parent / "bare.jsonl"
    records = [{"question": each, "answer": str(n)} for n, each in enumerate(QUESTIONS)]
    rows.write_text("\n".join(map(json.dumps, records)))
    without = experiment(model).model_dump(mode="json")["problems"] | {"path": str(rows)}
    hint = {"hint": ANSWER | {"context": "wrong_hint"}}
    with pytest.raises(ConfigError, match=r"'hint' shows the teacher wrong_hint[\s\S]*4 train"):
        prepared(model, conditions=hint, problems=without)
    pairs = {"hint": hint["hint"] | {"group_size": 2}}  # another rollout may be wrong
    assert prepared(model, conditions=pairs, problems=without)
    other = {"contexts": {"theirs": "{{ other_solution }}"}, "problems": without}
    with pytest.raises(ConfigError, match=r"'answer' shows the teacher theirs"):
        prepared(model, conditions={"answer": ANSWER | {"context": "theirs"}}, **other)


def added(model, context, **settings):
    """The run of the file with another condition, whose context may be a template of its own."""
    run = experiment(model, **settings)
    conditions = {"answer": ANSWER, "more": ANSWER | {"context": context}}
    wider = experiment(model, **settings, conditions=conditions, contexts={"long": 99 * "Hm! "})
    return wider.part_of(run)


def prepare_added(joined, model):
    with Session(model.parent / "runs") as session:
        prepare.fn(base_run(session, joined))
        return Experiment.model_validate_json(session.store.rows("experiments")["config"][0])


def test_what_is_added_is_stored_with_the_run_and_its_rows_stay(model):
    before = prepared(model)[0]
    stored = prepare_added(added(model, "reference"), model)
    assert [*stored.conditions] == ["answer", "more"] and stored.added.conditions == ("more",)
    after = prepared(model)[0]  # from the file as it was
    assert after.drop("config").equals(before.drop("config"))
    assert Experiment.model_validate_json(after["config"][0]) == stored


def test_what_is_added_must_fit_the_problems_that_are_there(model):
    prepared(model)
    with pytest.raises(ConfigError, match="no room beside a problem") as caught:
        prepare_added(added(model, "long"), model)
    assert "the teacher's prompt" in caught.value.got and "rows.jsonl" in caught.value.where
    assert len(Experiment.model_validate_json(prepared(model)[0]["config"][0]).conditions) == 1


def test_two_files_cannot_add_the_same_name_with_other_settings(model):
    prepared(model)
    mine, yours = added(model, "reference"), added(model, "outcome")
    prepare_added(mine, model)
    with pytest.raises(ConfigError, match="was added to this run") as caught:
        prepare_added(yours, model)
    assert "more" in caught.value.got and "rename" in caught.value.fix


def test_checkpoints_whose_tables_are_gone_are_not_thrown_away(model):
    run = prepared(model)[0]["experiment_id"][0]
    folder = model.parent / "runs" / "checkpoints" / run
    (folder / "answer" / "seed-0" / "round-0001").mkdir(parents=True)
    (model.parent / "runs" / "sdcore.duckdb").unlink()
    with pytest.raises(StoreError, match="its checkpoints are there") as caught:
        prepared(model)
    assert caught.value.where == str(folder)
    folder.rename(folder.with_name("aside"))
    assert prepared(model)[0]["experiment_id"].to_list() == [run]


def test_a_base_model_that_changed_since_the_start_is_refused(model):
    before = prepared(model)
    assert prepared(model)[0].equals(before[0])
    flip(model / "model.safetensors")
    with pytest.raises(ModelError, match="weights have changed") as caught:
        prepared(model)
    assert caught.value.got != caught.value.expected and str(model) in caught.value.where
    flip(model / "model.safetensors")
    assert prepared(model)[0].equals(before[0])
    (model / "notes.txt").write_text("not the model's")
    prepared(model)
    config = (model / "tokenizer_config.json").read_text()
    (model / "tokenizer_config.json").write_text(config.replace("{", '{"add_bos_token": true,', 1))
    with pytest.raises(ModelError, match="config or tokenizer has changed"):
        prepared(model)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [({"student": "Solve it."}, "the question"), ({"teacher": "{{ student }}"}, "the context")],
)
def test_prompts_that_hide_something_are_refused_before_a_row_is_stored(model, prompts, message):
    with pytest.raises(ConfigError, match=f"does not show {message}"):
        prepared(model, prompts={"student": "{{ question }}"} | prompts)
    with Session(model.parent / "runs") as session:
        assert not len(session.store.rows("experiments"))


def test_a_chat_template_without_the_messages_is_refused(model):
    characters("Hello!").save_pretrained(model.parent / "deaf")
    shutil.copyfile(model / "config.json", model.parent / "deaf" / "config.json")
    shutil.copyfile(model / "model.safetensors", model.parent / "deaf" / "model.safetensors")
    with pytest.raises(ConfigError, match="leaves out what it is given"):
        prepared(model.parent / "deaf")
