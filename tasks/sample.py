"""Stage 2: the policy answers a round's questions. Evaluation samples through here too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.config import ENGINES
from sdcore.engines import Completion, Request
from sdcore.grading.graders import Response, grade_responses
from sdcore.models.prompts import student_prompt
from sdcore.rollouts import Problem, Rollout
from sdcore.schedule import round_questions, sampling_seed
from sdcore.traces import parse_trace, response_text
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.progress import Advance
from tasks.run.retries import RETRIES
from tasks.run.rounds import Round, in_order

OnRollouts = Callable[[Sequence[Rollout]], None]
"""Called with rollouts as soon as they are sampled and graded."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A rollout to have, without its result."""

    rollout_id: str
    problem: Problem
    sample_index: int
    sampling_seed: int
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A response to a problem: the tokens of the whole trace, by the id of the sample."""

    sample_id: str
    problem: Problem
    token_ids: Sequence[int]


@task(cache_policy=NO_CACHE, task_run_name="sample {round_.label}", **RETRIES)
def sample(round_: Round) -> int:
    """Sample `group_size` rollouts of each of the round's questions from its sampler.

    They go on to `Round.arrived` as they come.

    Returns:
        How many rollouts the round has.
    """
    run, training = round_.run, round_.run.experiment.training
    problems = run.train_problems
    asked = round_questions(
        problems["problem_id"].to_list(), training.questions_per_round, round_.number, run.seed
    )
    chosen = pl.DataFrame({"problem_id": asked}).join(
        problems, on="problem_id", how="left", maintain_order="left"
    )
    number, sampler = round_.number, round_.sampler
    if round_.resumed:
        round_.arrived.add(stored_rollouts(run, sampler, "train", round=number))
    known = round_.arrived.rollouts  # of the last process, or of a try that failed
    rollouts = sample_missing(
        run, sampler, "train", chosen, run.settings.group_size, known,
        number=number, on_rollouts=round_.arrived.add,
    )  # fmt: skip
    round_.rollouts = in_order(rollouts)
    round_.frames["rollouts"] = Rollout.to_frame(round_.rollouts)
    round_.arrived.end()
    return len(rollouts)


def sample_missing(
    run: ConditionRun,
    policy: StoredPolicy,
    purpose: str,
    problems: pl.DataFrame,
    samples: int,
    stored: Sequence[Rollout],
    *,
    number: int | None = None,
    on_rollouts: OnRollouts | None = None,
) -> list[Rollout]:
    """Sample and grade what is missing of `samples` rollouts per problem.

    Requests go to the engine in batches that depend on the request list only. A batch is sampled
    again as a whole if any of it is not among the `stored` ones, so that a resumed run repeats the
    same arithmetic and gets the same tokens. Where a server's rounding gives others, the stored
    ones count.

    Args:
        run: whose rollouts.
        policy: that draws them.
        purpose: of the samples: `train`, `test` and so on.
        problems: rows of the table `problems`.
        samples: per problem.
        stored: rollouts that there are already.
        number: their column `round`, by default the rounds behind the policy.
        on_rollouts: called with rollouts as they come; by default each batch is stored.

    Returns:
        The rollouts, in the order of the problems and samples.
    """
    number = policy.round if number is None else number
    with run.session.clock.measure("compute"):
        planned = _plan(run, policy, purpose, number, problems, samples)
    rollouts = {rollout.rollout_id: rollout for rollout in stored}
    size = run.experiment.sampling.batch_size
    with run.session.panel.bar(f"{purpose} samples of {run.label}", len(planned)) as advance:
        for start in range(0, len(planned), size):
            batch = planned[start : start + size]
            if all(each.rollout_id in rollouts for each in batch):
                advance(len(batch), cached=len(batch))
                continue
            fresh = _sample_batch(run, policy, purpose, number, batch, advance, on_rollouts)
            rollouts = {rollout.rollout_id: rollout for rollout in fresh} | rollouts
            if on_rollouts is None:
                run.store.append_missing(rollouts=Rollout.to_frame(fresh))
            run.session.interrupts.stop_if_asked()
    return [rollouts[each.rollout_id] for each in planned]


def stored_rollouts(
    run: ConditionRun, policy: StoredPolicy, purpose: str, **equals: object
) -> list[Rollout]:
    """Return the stored rollouts of a policy for a purpose, in no order.

    Args:
        run: whose rollouts.
        policy: that drew them.
        purpose: of the samples: `train`, `test` and so on.
        equals: further columns, as in `Store.rows`.
    """
    same = {"policy_id": policy.policy_id, "purpose": purpose} | run.columns | equals
    return Rollout.from_frame(run.store.rows("rollouts", **same))


def _plan(
    run: ConditionRun,
    policy: StoredPolicy,
    purpose: str,
    number: int,
    problems: pl.DataFrame,
    samples: int,
) -> list[Planned]:
    tokenizer = run.tokenizer
    sampling = run.experiment.sampling.model_dump(mode="json", exclude={"batch_size"})
    planned: list[Planned] = []
    for problem in Problem.from_frame(problems):
        prompt = student_prompt(tokenizer, run.experiment.prompts, problem.question)
        for index in range(samples):
            seed = sampling_seed(run.seed, purpose, number, problem.problem_id, index)
            key = run.key("rollout", policy.policy_id, purpose, number, prompt, sampling, seed)
            planned.append(Planned(key, problem, index, seed, prompt))
    return planned


def _sample_batch(
    run: ConditionRun,
    policy: StoredPolicy,
    purpose: str,
    number: int,
    batch: Sequence[Planned],
    advance: Advance,
    on_rollouts: OnRollouts | None,
) -> list[Rollout]:
    made: dict[int, Rollout] = {}

    def finished(completions: Mapping[int, Completion]) -> None:
        planned = [batch[index] for index in completions]
        rollouts = _rollouts(run, policy, purpose, number, planned, [*completions.values()])
        made.update(zip(completions, rollouts, strict=True))
        if on_rollouts is not None:
            on_rollouts(rollouts)

    with run.session.clock.measure("compute"):
        engine = run.session.models.engine(run, policy.round, policy.policy_id)
        with ENGINES.running(run.experiment.engine.kind):
            completions = engine.generate(
                [Request(each.prompt_ids, each.sampling_seed) for each in batch],
                run.experiment.sampling,
                lambda finished, tokens: advance(finished, tokens=tokens),
                finished,
            )
        finished({index: each for index, each in enumerate(completions) if index not in made})
    return [*made.values()]


def _rollouts(
    run: ConditionRun,
    policy: StoredPolicy,
    purpose: str,
    number: int,
    planned: Sequence[Planned],
    completions: Sequence[Completion],
) -> list[Rollout]:
    answered = [
        Answered(each.rollout_id, each.problem, completion.token_ids)
        for each, completion in zip(planned, completions, strict=True)
    ]
    results = graded(run, answered)
    return [
        Rollout(
            **run.columns,  # type: ignore[arg-type]
            rollout_id=each.rollout_id,
            policy_id=policy.policy_id,
            problem_id=each.problem.problem_id,
            purpose=purpose,
            round=number,
            sample_index=each.sample_index,
            sampling_seed=each.sampling_seed,
            prompt_ids=each.prompt_ids,
            response_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            **result,  # type: ignore[arg-type]
        )
        for each, completion, result in zip(planned, completions, results, strict=True)
    ]


def graded(run: ConditionRun, answered: Sequence[Answered]) -> list[Mapping[str, object]]:
    """The columns of rollouts that follow from their text and the grader."""
    tokenizer = run.tokenizer
    traces = [parse_trace(response_text(tokenizer, each.token_ids)) for each in answered]
    responses = [
        Response(
            each.sample_id,
            each.problem.question,
            each.problem.reference,
            trace.text,
            trace.answer,
        )
        for each, trace in zip(answered, traces, strict=True)
    ]
    rewards = grade_responses(run.experiment.grader, responses)
    return [
        {
            "text": trace.text,
            "answer": trace.answer,
            "reward": reward.value,
            "correct": reward.correct,
            "grade_details": reward.details,
            "grade_reason": reward.reason,
            "well_formed": trace.well_formed,
        }
        for trace, reward in zip(traces, rewards, strict=True)
    ]
