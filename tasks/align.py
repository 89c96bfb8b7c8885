"""Stage 3: the critic aligns its feedback with each trace; the teacher prompts are built."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.contexts import NULL, Context, ContextInputs, Critique
from sdcore.critics.llm import Critic
from sdcore.models.prompts import teacher_prompt
from sdcore.schedule import signal_rounds
from sdcore.store.schema import TABLES
from sdcore.system.stopwatch import STOPWATCH
from tasks.run import live, progress
from tasks.run.critiques import criticise, critique_id, critique_rows, open_critic
from tasks.run.lineage import Lineage, Reference, remember, round_rollouts, split_problems
from tasks.run.retries import RETRIES

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="align {lineage.label} round {round_}", **RETRIES)
def align(lineage: Lineage, round_: int) -> Reference:
    """Criticise the round's rollouts where needed and store what the self-teacher will see.

    Critiques are also made in the rounds whose token signals are stored, because they tell which
    step is the first wrong one. A rollout whose context cannot be built (invalid critique, no
    correct sibling) gets the critic's fallback context or, without one, no row here, and is left
    out of training.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's budget allows no further request.
    """
    critic = open_critic(lineage)
    with STOPWATCH.measure("compute"):
        rollouts = with_problems(round_rollouts(lineage, round_), split_problems(lineage, "train"))
        wanted = _wants_critiques(lineage, round_)
        critiques = criticise(lineage, critic, rollouts) if wanted else {}
        judged = [row for row in rollouts if row["rollout_id"] in critiques]
        frames = {"critiques": critique_rows(lineage, critic, judged, critiques)}
        if lineage.settings.teacher_context is not None:
            frames["contexts"] = context_rows(
                lineage, critic, _wanted(lineage), rollouts, critiques
            )
    lineage.store.append_soon(**frames)
    _note(lineage, round_, frames)
    table = "contexts" if "contexts" in frames else "critiques"
    for name, rows in frames.items():
        remember(name, lineage, round_, rows)
    return Reference(table, f"{lineage.label} round {round_}", len(frames[table]))


def has_work(lineage: Lineage, round_: int) -> bool:
    """Whether the round has this stage: GRPO needs it only where signals are stored."""
    return lineage.settings.teacher_context is not None or _wants_critiques(lineage, round_)


def _wants_critiques(lineage: Lineage, round_: int) -> bool:
    context, known = lineage.settings.teacher_context, lineage.experiment.known_contexts
    needed = context is not None and "critique" in known[context].needs
    judged = round_ in signal_rounds(lineage.experiment) and lineage.experiment.judge is not None
    return needed or judged


def with_problems(rollouts: pl.DataFrame, problems: pl.DataFrame) -> list[Row]:
    """Rollouts with their question, solution and reference answer."""
    reference = problems.select("problem_id", "question", "solution", "reference")
    return rollouts.join(reference, on="problem_id", how="left", maintain_order="left").to_dicts()


def context_rows(
    lineage: Lineage,
    critic: Critic,
    wanted: Sequence[Context],
    rollouts: list[Row],
    critiques: Mapping[str, Critique],
) -> pl.DataFrame:
    """Rows of `contexts`: for each rollout the first wanted one that it has the sources of."""
    tokenizer = live.tokenizer(lineage.experiment.model.name)
    rows: list[Row] = []
    for index, rollout in enumerate(rollouts):
        others = rollouts[index + 1 :] + rollouts[:index]  # looked through in a fixed cyclic order
        other_id = next(_others_with_critique(rollout, others, critiques), None)
        inputs = _inputs(rollout, others, critiques, other_id)
        context = next((each for each in wanted if each.available(inputs)), None)
        if context is None:
            continue
        rollout_id, text = rollout["rollout_id"], context.build(inputs)
        wording = lineage.experiment.prompts
        prompt = teacher_prompt(tokenizer, wording, rollout["question"], text)
        quoted = {"critique": rollout_id, "other_critique": other_id}
        quoted_ids = [quoted[need] for need in sorted(context.needs) if need in quoted]
        rows.append(
            lineage.columns
            | {
                "context_id": lineage.key("context", rollout_id, context.name, prompt),
                "rollout_id": rollout_id,
                "context": context.name,
                "text": text,
                "critique_id": critique_id(lineage, critic, quoted_ids[-1]) if quoted_ids else None,
                "teacher_prompt_ids": prompt,
            }
        )
    return TABLES["contexts"].frame(rows)


def _wanted(lineage: Lineage) -> list[Context]:
    """The condition's context, and the one that stands in where a language model fails."""
    known, critic = lineage.experiment.known_contexts, lineage.experiment.judge
    context = known[lineage.settings.teacher_context or NULL]
    fallback = critic.fallback_context if critic and "critique" in context.needs else None
    return [context, known[fallback]] if fallback else [context]


def _inputs(
    rollout: Row, others: list[Row], critiques: Mapping[str, Critique], other_id: str | None
) -> ContextInputs:
    return ContextInputs(
        question=rollout["question"],
        solution=rollout["solution"],
        reference=rollout["reference"],
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


def _note(lineage: Lineage, round_: int, frames: Mapping[str, pl.DataFrame]) -> None:
    """Say how many critiques by a language model were refused, and what became of the rollouts."""
    if lineage.experiment.has_exact_critic or lineage.experiment.judge is None:
        return
    made = frames["critiques"]
    refused = made.filter(~pl.col("valid"))
    if not len(refused):
        return
    kept = refused.join(frames.get("contexts", refused), on="rollout_id", how="semi")
    progress.note(
        f"{lineage.label} round {round_}: {len(refused)} of {len(made)} critiques refused, "
        f"{len(refused) - len(kept)} rollouts left out"
    )
