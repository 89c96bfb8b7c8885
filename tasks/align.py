"""Stage 3: the critic aligns its feedback with each trace; the teacher prompts are built."""

from collections.abc import Iterator, Sequence

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.contexts import Context, ContextInputs
from sdcore.critics.llm import Critic
from sdcore.models.prompts import teacher_prompt
from sdcore.rollouts import (
    JudgedRollout,
    Neighbours,
    Problem,
    Rollout,
    context_inputs,
    neighbours,
    other_solutions,
)
from sdcore.schedule import signal_rounds
from sdcore.store.schema import TABLES
from tasks.run.condition_run import ConditionRun
from tasks.run.critiques import (
    Batch,
    Handed,
    criticise_arriving,
    critique_id,
    critique_rows,
    open_critic,
)
from tasks.run.progress import note
from tasks.run.retries import RETRIES
from tasks.run.rounds import Round


@task(cache_policy=NO_CACHE, task_run_name="align {round_.label}", **RETRIES)
def align(round_: Round) -> int:
    """Criticise the round's rollouts where needed, and build what the self-teacher will see.

    It may begin before they are all sampled: whole questions go to the critic as they come.

    Critiques are also made where the weighting of the tokens asks for the first wrong step, and in
    the rounds whose token signals are stored. A rollout whose context cannot be built (invalid
    critique, no correct sibling), or does not fit into the model, gets the critic's fallback
    context or, without one, no row here, and is left out of training.

    Returns:
        How many rollouts have a context or, without a teacher prompt, a critique.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's budget allows no further request.
    """
    run = round_.run
    with run.session.clock.measure("compute"), open_critic(run) as critic:
        if _wants_critiques(run, round_.number):
            count = run.experiment.training.questions_per_round * run.settings.group_size
            round_.critiques = criticise_arriving(run, critic, _arriving(round_), count)
            if not round_.rollouts:  # the stage that samples has failed, or was stopped
                return 0
            handed = Handed.of(round_.judged(), run.experiment.grader)
            round_.frames["critiques"] = critique_rows(run, critic, handed, round_.critiques)
        if run.settings.teacher_context is None:
            _note_refusals(round_, {rollout.rollout_id for rollout in round_.rollouts})
            return len(round_.critiques)
        wanted = run.experiment.shown_in(run.settings)
        contexts = context_rows(run, critic, wanted, round_.judged())
    round_.frames["contexts"] = contexts
    _note_refusals(round_, set(contexts["rollout_id"]))
    return len(contexts)


def streams(round_: Round) -> bool:
    """Return whether the critic is asked about rollouts while others are still sampled."""
    run = round_.run
    judge = run.experiment.judge
    return judge is not None and judge.streams and _wants_critiques(run, round_.number)


def has_work(round_: Round) -> bool:
    """Return whether the round has this stage: GRPO needs it only for critiques."""
    run = round_.run
    return run.settings.teacher_context is not None or _wants_critiques(run, round_.number)


def context_rows(
    run: ConditionRun, critic: Critic, wanted: Sequence[Context], judged: Sequence[JudgedRollout]
) -> pl.DataFrame:
    """Rows of `contexts`: for each rollout the first wanted one that can be built and fits."""
    needs = frozenset[str]().union(*(context.needs for context in wanted))
    others = _other_solutions(run, judged) if "other_solution" in needs else {}
    rows = []
    for mine, near in zip(judged, neighbours(judged), strict=True):
        inputs = context_inputs(mine, near, needs, others.get(mine.problem.problem_id))
        if row := _context_row(run, critic, wanted, mine, near, inputs):
            rows.append(row)
    return TABLES["contexts"].frame(rows)


def _context_row(
    run: ConditionRun,
    critic: Critic,
    wanted: Sequence[Context],
    mine: JudgedRollout,
    near: Neighbours,
    inputs: ContextInputs,
) -> dict[str, object] | None:
    rollout_id = mine.rollout.rollout_id
    for context in wanted:
        if not context.available(inputs):
            continue
        text = context.build(inputs)
        prompt = teacher_prompt(run.tokenizer, run.experiment.prompts, mine.problem.question, text)
        length, limit = len(prompt) + len(mine.rollout.response_ids), run.context_length
        if limit is None or length <= limit:
            break
        note(
            f"{run.label}: rollout {rollout_id[:8]} with context {context.name} has {length} "
            f"tokens, more than the model's {limit}"
        )
    else:
        return None
    quoted = {"critique": rollout_id}
    if near.other is not None:
        quoted["other_critique"] = near.other.rollout.rollout_id
    quoted_ids = [quoted[need] for need in sorted(context.needs) if need in quoted]
    return run.columns | {
        "context_id": run.key("context", rollout_id, context.name, prompt),
        "rollout_id": rollout_id,
        "context": context.name,
        "text": text,
        "critique_id": critique_id(run, critic, quoted_ids[-1]) if quoted_ids else None,
        "teacher_prompt_ids": prompt,
    }


def _other_solutions(run: ConditionRun, judged: Sequence[JudgedRollout]) -> dict[str, str]:
    """Solutions of other training problems, by the id of the problem that they are shown for."""
    known = Problem.from_frame(run.train_problems)
    return other_solutions([each.problem for each in judged], known)


def _arriving(round_: Round) -> Iterator[Batch]:
    for rollouts in round_.arrived:
        handed = Handed.of(round_.judged(rollouts), round_.run.experiment.grader)
        yield Batch(handed, {"rollouts": Rollout.to_frame(rollouts)})


def _wants_critiques(run: ConditionRun, round_: int) -> bool:
    needed = any(context.quotes_critique for context in run.experiment.shown_in(run.settings))
    needed = needed or "regions" in run.settings.weighting.needs
    judged = round_ in signal_rounds(run.experiment) and run.experiment.judge is not None
    return needed or judged


def _note_refusals(round_: Round, trainable: set[str]) -> None:
    """Say how many critiques by a language model were refused, and what happened to the rollouts.

    Args:
        round_: with its critiques.
        trainable: ids of the rollouts that have what the objective needs.
    """
    if round_.run.experiment.judge is None or round_.run.experiment.has_exact_critic:
        return
    refused = {key for key, critique in round_.critiques.items() if not critique.valid}
    if "regions" in round_.run.settings.weighting.needs:
        correct = {each.rollout_id for each in round_.rollouts if each.correct}
        trainable = trainable - (refused - correct)
    if refused:
        note(
            f"{round_.label}: {len(refused)} of {len(round_.critiques)} critiques refused, "
            f"{len(refused - trainable)} rollouts left out"
        )
