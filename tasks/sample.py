"""Stage 2: the policy answers a round's questions. Evaluation samples through here too."""

from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.engines import Completion, Request
from sdcore.grading.graders import Response, grade_responses
from sdcore.models.prompts import student_prompt
from sdcore.schedule import round_questions, sampling_seed
from sdcore.store.schema import TABLES
from sdcore.system.stopwatch import STOPWATCH
from sdcore.traces import parse_trace
from tasks.run import live, progress
from tasks.run.interrupts import stop_if_asked
from tasks.run.lineage import Lineage, Reference, in_groups, policy_row, remember, split_problems
from tasks.run.retries import RETRIES

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="sample {lineage.label} round {round_}", **RETRIES)
def sample(lineage: Lineage, round_: int) -> Reference:
    """Sample `group_size` rollouts of each of the round's questions from the current policy."""
    problems = split_problems(lineage, "train")
    with STOPWATCH.measure("compute"):
        count = lineage.experiment.training.questions_per_round
        chosen = round_questions(problems["problem_id"].to_list(), count, round_, lineage.seed)
        asked = pl.DataFrame({"problem_id": chosen}).join(problems, on="problem_id", how="left")
    rollouts = sample_missing(lineage, round_, "train", asked, lineage.settings.group_size)
    with STOPWATCH.measure("compute"):
        lineage.stored.tokens[round_] = int(rollouts["response_ids"].list.len().sum())
        remember("rollouts", lineage, round_, in_groups(rollouts))
    return Reference("rollouts", f"{lineage.label} round {round_}", len(rollouts))


def sample_missing(
    lineage: Lineage, round_: int, purpose: str, problems: pl.DataFrame, samples: int
) -> pl.DataFrame:
    """Sample, grade and store what is missing of `samples` rollouts a problem.

    Requests go to the engine in batches that depend on the request list only; a batch is stored
    within seconds, and sampled again as a whole if any of it is missing, so that a resumed run
    repeats the same arithmetic and gets the same tokens.

    Returns:
        The rollouts as they are stored; they are read back only where some were there before.
    """
    policy = policy_row(lineage, round_)["policy_id"]
    with STOPWATCH.measure("compute"):
        planned = _plan(lineage, round_, purpose, problems, samples, policy)
    done, wanted = lineage.stored.rollouts, [row["rollout_id"] for row in planned]
    all_new = done.isdisjoint(wanted)
    size = lineage.experiment.sampling.batch_size
    batches = [planned[start : start + size] for start in range(0, len(planned), size)]
    fresh: list[pl.DataFrame] = []
    with progress.bar(f"{purpose} samples of {lineage.label}", total=len(planned)) as advance:
        for batch in batches:
            if done.issuperset(row["rollout_id"] for row in batch):
                advance(len(batch), cached=len(batch))
            else:
                fresh.append(_sample_batch(lineage, round_, policy, batch, problems, advance))
                lineage.store.append_soon(rollouts=fresh[-1])
                done.update(fresh[-1]["rollout_id"])
            stop_if_asked()
    if all_new:
        return pl.concat(fresh)
    rows = lineage.store.rows("rollouts", policy_id=policy, purpose=purpose, **lineage.columns)
    return rows.join(pl.DataFrame({"rollout_id": wanted}), on="rollout_id", how="semi")


def _plan(
    lineage: Lineage, round_: int, purpose: str, problems: pl.DataFrame, samples: int, policy: str
) -> list[Row]:
    """The rollouts to have, as rows without their results."""
    tokenizer = live.tokenizer(lineage.experiment.model.name)
    sampling = lineage.experiment.sampling.model_dump(mode="json", exclude={"batch_size"})
    planned: list[Row] = []
    for problem_id, question in problems.select("problem_id", "question").iter_rows():
        prompt = student_prompt(tokenizer, lineage.experiment.prompts, question)
        for index in range(samples):
            seed = sampling_seed(lineage.seed, purpose, round_, problem_id, index)
            key = lineage.key("rollout", policy, purpose, round_, prompt, sampling, seed)
            planned.append(
                lineage.columns
                | {
                    "rollout_id": key,
                    "policy_id": policy,
                    "problem_id": problem_id,
                    "purpose": purpose,
                    "round": round_,
                    "sample_index": index,
                    "sampling_seed": seed,
                    "prompt_ids": prompt,
                }
            )
    return planned


def _sample_batch(
    lineage: Lineage,
    round_: int,
    policy: str,
    batch: list[Row],
    problems: pl.DataFrame,
    advance: progress.Advance,
) -> pl.DataFrame:
    """Sample and grade a batch: its rows of `rollouts`."""
    with STOPWATCH.measure("compute"):
        engine = live.engine(lineage, round_, policy)
        requests = [Request(row["prompt_ids"], row["sampling_seed"]) for row in batch]
        completions = engine.generate(
            requests,
            lineage.experiment.sampling,
            lambda finished, tokens: advance(finished, tokens=tokens),
        )
        results = _graded(lineage, completions, batch, problems)
        rows = [row | result for row, result in zip(batch, results, strict=True)]
        return TABLES["rollouts"].frame(rows)


def _graded(
    lineage: Lineage, completions: list[Completion], batch: list[Row], problems: pl.DataFrame
) -> list[Row]:
    tokenizer = live.tokenizer(lineage.experiment.model.name)
    texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
    traces = [parse_trace(text) for text in texts]
    known = {row["problem_id"]: row for row in problems.to_dicts()}
    asked = [known[row["problem_id"]] for row in batch]
    responses = [
        Response(
            row["rollout_id"], problem["question"], problem["reference"], trace.text, trace.answer
        )
        for row, problem, trace in zip(batch, asked, traces, strict=True)
    ]
    rewards = grade_responses(lineage.experiment.grader, responses)
    return [
        {
            "response_ids": completion.token_ids,
            "text": trace.text,
            "logprobs": completion.logprobs,
            "finish_reason": completion.finish_reason,
            "answer": trace.answer,
            "reward": reward.value,
            "correct": reward.correct,
            "grade_details": reward.details,
            "grade_reason": reward.reason,
            "well_formed": trace.well_formed,
        }
        for completion, trace, reward in zip(completions, traces, rewards, strict=True)
    ]
