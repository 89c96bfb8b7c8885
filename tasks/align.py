"""Stage 3: the critic aligns its feedback with each trace; the teacher prompts are built."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.config import DistillConfig
from sdcore.contexts import CONTEXTS, ContextInputs
from sdcore.critics import ORACLE, Critique, critique, has_oracle
from sdcore.prompts import prompt_ids, teacher_messages
from sdcore.rounds import signal_rounds
from sdcore.schema import TABLES
from sdcore.timing import STOPWATCH
from tasks import models
from tasks.workspace import Lineage, Reference, round_rollouts, split_problems

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="align {lineage.label} round {round_}")
def align(lineage: Lineage, round_: int) -> Reference:
    """Criticise the round's rollouts where needed and store what the self-teacher will see.

    Critiques are also made in the rounds whose token signals are stored, because they tell which
    step is the first wrong one. A rollout whose context cannot be built (invalid critique, no
    correct sibling) gets no row here and is left out of training.
    """
    rollouts = _with_problems(lineage, round_)
    critiques = _critiques(lineage, rollouts) if _wants_critiques(lineage, round_) else {}
    frames = {"critiques": TABLES["critiques"].frame(list(critiques.values()))}
    if isinstance(lineage.settings, DistillConfig):
        with STOPWATCH.measure("compute"):
            rows = _contexts(lineage, lineage.settings.context, rollouts, critiques)
        frames["contexts"] = TABLES["contexts"].frame(rows)
    lineage.store.append_missing(**frames)
    table = "contexts" if "contexts" in frames else "critiques"
    return Reference(table, f"{lineage.label} round {round_}", len(frames[table]))


def has_work(lineage: Lineage, round_: int) -> bool:
    """Whether the round has this stage: GRPO needs it only where signals are stored."""
    return isinstance(lineage.settings, DistillConfig) or _wants_critiques(lineage, round_)


def _wants_critiques(lineage: Lineage, round_: int) -> bool:
    settings = lineage.settings
    needed = isinstance(settings, DistillConfig) and "critique" in CONTEXTS[settings.context].needs
    judged = round_ in signal_rounds(lineage.experiment) and has_oracle(lineage.experiment.problems)
    return needed or judged


def _with_problems(lineage: Lineage, round_: int) -> list[Row]:
    problems = split_problems(lineage, "train")
    reference = problems.select("problem_id", "question", "solution", reference="answer")
    return round_rollouts(lineage, round_).join(reference, on="problem_id", how="left").to_dicts()


def _critiques(lineage: Lineage, rollouts: list[Row]) -> dict[str, Row]:
    """A `critiques` row for each rollout, by rollout id."""
    with STOPWATCH.measure("compute"):
        verdicts = [critique(r["question"], r["reference"], r["text"]) for r in rollouts]
    return {
        rollout["rollout_id"]: lineage.columns
        | {
            "critique_id": lineage.key("critique", rollout["rollout_id"], ORACLE),
            "rollout_id": rollout["rollout_id"],
            "critic": ORACLE,
            "verdict": verdict.case,
            "first_wrong_step": verdict.first_wrong_step,
            "corrected": verdict.corrected,
            "valid": verdict.valid,
            "invalid_reason": verdict.invalid_reason,
            "attempts": verdict.attempts,
            "tokens": verdict.tokens,
        }
        for rollout, verdict in zip(rollouts, verdicts, strict=True)
    }


def _contexts(
    lineage: Lineage, name: str, rollouts: list[Row], critiques: Mapping[str, Row]
) -> list[Row]:
    context, tokenizer = CONTEXTS[name], models.tokenizer(lineage.experiment.model.name)
    rows: list[Row] = []
    for index, rollout in enumerate(rollouts):
        inputs = _inputs(rollouts, critiques, index)
        if not context.available(inputs):
            continue
        text = context.build(inputs)
        messages = teacher_messages(lineage.experiment.prompts, rollout["question"], text)
        prompt = prompt_ids(tokenizer, messages)
        quoted = critiques.get(rollout["rollout_id"]) if "critique" in context.needs else None
        rows.append(
            lineage.columns
            | {
                "context_id": lineage.key("context", rollout["rollout_id"], name, prompt),
                "rollout_id": rollout["rollout_id"],
                "context": name,
                "text": text,
                "critique_id": quoted["critique_id"] if quoted else None,
                "teacher_prompt_ids": prompt,
            }
        )
    return rows


def _inputs(rollouts: list[Row], critiques: Mapping[str, Row], index: int) -> ContextInputs:
    rollout = rollouts[index]
    others = rollouts[index + 1 :] + rollouts[:index]
    sibling = next(
        (r["text"] for r in others if r["problem_id"] == rollout["problem_id"] and r["correct"]),
        None,
    )
    other = next(
        (
            critiques[r["rollout_id"]]
            for r in others
            if r["problem_id"] != rollout["problem_id"] and r["rollout_id"] in critiques
        ),
        None,
    )
    return ContextInputs(
        question=rollout["question"],
        solution=rollout["solution"],
        answer=rollout["reference"],
        trace=rollout["text"],
        correct=rollout["correct"],
        critique=_as_critique(critiques.get(rollout["rollout_id"])),
        other_critique=_as_critique(other),
        sibling=sibling,
    )
