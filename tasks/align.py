"""Stage 3: the critic aligns its feedback with each trace; the teacher prompts are built."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.config import DistillConfig
from sdcore.contexts import CONTEXTS, ContextInputs, Critique
from sdcore.critics import ORACLE, critique, has_oracle
from sdcore.prompts import teacher_prompt
from sdcore.rounds import signal_rounds
from sdcore.schema import TABLES
from sdcore.timing import STOPWATCH
from tasks import models
from tasks.retries import RETRIES
from tasks.workspace import Lineage, Reference, round_rollouts, split_problems

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="align {lineage.label} round {round_}", **RETRIES)
def align(lineage: Lineage, round_: int) -> Reference:
    """Criticise the round's rollouts where needed and store what the self-teacher will see.

    Critiques are also made in the rounds whose token signals are stored, because they tell which
    step is the first wrong one. A rollout whose context cannot be built (invalid critique, no
    correct sibling) gets no row here and is left out of training.
    """
    rollouts = _with_problems(lineage, round_)
    with STOPWATCH.measure("compute"):
        critiques = _critiques(rollouts) if _wants_critiques(lineage, round_) else {}
        frames = {"critiques": _critique_rows(lineage, critiques)}
        if isinstance(lineage.settings, DistillConfig):
            frames["contexts"] = _contexts(lineage, lineage.settings.context, rollouts, critiques)
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


def _critiques(rollouts: list[Row]) -> dict[str, Critique]:
    return {
        row["rollout_id"]: critique(row["question"], row["reference"], row["text"])
        for row in rollouts
    }


def _critique_rows(lineage: Lineage, critiques: Mapping[str, Critique]) -> pl.DataFrame:
    rows = [
        lineage.columns
        | {
            "critique_id": _critique_id(lineage, rollout_id),
            "rollout_id": rollout_id,
            "critic": ORACLE,
            "verdict": verdict.case,
            "first_wrong_step": verdict.first_wrong_step,
            "corrected": verdict.corrected,
            "valid": verdict.valid,
            "invalid_reason": verdict.invalid_reason,
            "attempts": verdict.attempts,
            "tokens": verdict.tokens,
        }
        for rollout_id, verdict in critiques.items()
    ]
    return TABLES["critiques"].frame(rows)


def _critique_id(lineage: Lineage, rollout_id: str) -> str:
    return lineage.key("critique", rollout_id, ORACLE)


def _contexts(
    lineage: Lineage, name: str, rollouts: list[Row], critiques: Mapping[str, Critique]
) -> pl.DataFrame:
    context, tokenizer = CONTEXTS[name], models.tokenizer(lineage.experiment.model.name)
    rows: list[Row] = []
    for index, rollout in enumerate(rollouts):
        others = rollouts[index + 1 :] + rollouts[:index]  # looked through in a fixed cyclic order
        other_id = next(_others_with_critique(rollout, others, critiques), None)
        inputs = _inputs(rollout, others, critiques, other_id)
        if not context.available(inputs):
            continue
        rollout_id, text = rollout["rollout_id"], context.build(inputs)
        wording = lineage.experiment.prompts
        prompt = teacher_prompt(tokenizer, wording, rollout["question"], text)
        quoted = {"critique": rollout_id, "other_critique": other_id}
        quoted_ids = [quoted[need] for need in sorted(context.needs) if need in quoted]
        rows.append(
            lineage.columns
            | {
                "context_id": lineage.key("context", rollout_id, name, prompt),
                "rollout_id": rollout_id,
                "context": name,
                "text": text,
                "critique_id": _critique_id(lineage, quoted_ids[-1]) if quoted_ids else None,
                "teacher_prompt_ids": prompt,
            }
        )
    return TABLES["contexts"].frame(rows)


def _inputs(
    rollout: Row, others: list[Row], critiques: Mapping[str, Critique], other_id: str | None
) -> ContextInputs:
    return ContextInputs(
        question=rollout["question"],
        solution=rollout["solution"],
        answer=rollout["reference"],
        trace=rollout["text"],
        correct=rollout["correct"],
        critique=critiques.get(rollout["rollout_id"]),
        other_critique=critiques[other_id] if other_id else None,
        sibling=next(_siblings(rollout, others), None),
    )


def _others_with_critique(
    rollout: Row, others: list[Row], critiques: Mapping[str, Critique]
) -> Iterator[str]:
    for other in others:
        found = critiques.get(other["rollout_id"])
        if found is not None and found.valid and other["problem_id"] != rollout["problem_id"]:
            yield other["rollout_id"]


def _siblings(rollout: Row, others: list[Row]) -> Iterator[str]:
    for other in others:
        if other["correct"] and other["problem_id"] == rollout["problem_id"]:
            yield other["text"]
