"""The preflight's branches: the teacher's preferred token forced, then the student goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import preflight
from sdcore.config import SamplingConfig
from sdcore.engines import Completion, Request
from sdcore.rollouts import Problem
from sdcore.schedule import sampling_seed
from sdcore.store.schema import TABLES
from tasks.diagnose import frozen_problems
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import Advance
from tasks.run.retries import RETRIES
from tasks.sample import Answered, graded
from tasks.teacher import fitting


@dataclass(frozen=True, slots=True)
class Branch:
    """A token of a wrong rollout to replace; `row` is of `viability.asked`."""

    branch_id: str
    row: Mapping[str, Any]
    problem: Problem
    seed: int

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The rollout's tokens before it."""
        return tuple(self.row["response_ids"][: self.row["position"]])


@task(cache_policy=NO_CACHE, task_run_name="branch {run.label}", **RETRIES)
def sample_branches(run: ConditionRun) -> int:
    """Force the teacher's preferred token where it disagrees, and let the student go on from there.

    Beside it the student goes on from the same prefix without a forced token. Batches depend on the
    list alone, so that a stage that goes on gets the same tokens.

    Returns:
        How many branches there are, those included at which the teacher turned out to agree.
    """
    if not run.experiment.diagnose.branches:
        return 0
    problems = frozen_problems(run)
    planned = preflight.branch_points(run.store, run.experiment, problems["problem_id"].to_list())
    known = {problem.problem_id: problem for problem in Problem.from_frame(problems)}
    sampling = run.experiment.sampling.model_dump(mode="json", exclude={"batch_size"})
    branches = []
    for row in planned.iter_rows(named=True):
        # The same numbers under all contexts: their difference is that of the forced tokens.
        of = row["rollout_id"], row["position"]
        seed = sampling_seed(run.seed, "branch", row["round"], *of)
        key = run.key("branch", row["policy_id"], row["context"], *of, sampling, seed)
        branches.append(Branch(key, row, known[row["problem_id"]], seed))
    stored = frozenset(run.store.rows("branches", **run.columns)["branch_id"].to_list())
    size = run.experiment.sampling.batch_size
    with run.session.panel.bar(f"branches of {run.label}", len(branches)) as advance:
        for start in range(0, len(branches), size):
            batch = branches[start : start + size]
            if all(each.branch_id in stored for each in batch):
                advance(len(batch), cached=len(batch))
                continue
            rows = _sample_batch(run, batch, advance)
            run.store.append_missing(branches=TABLES["branches"].frame(rows))
            run.session.interrupts.stop_if_asked()
    return len(branches)


def _sample_batch(
    run: ConditionRun, batch: Sequence[Branch], advance: Advance
) -> list[dict[str, object]]:
    """Ask for the teacher's tokens, then for both continuations where these are others."""
    with run.session.clock.measure("compute"):
        asked = [(*each.row["teacher_prompt_ids"], *each.prefix_ids) for each in batch]
        greedy = run.experiment.sampling.model_copy(update={"temperature": 0, "max_new_tokens": 1})
        forced = _generate(run, asked, [each.seed for each in batch], greedy)
        tokens = [each.token_ids[0] for each in forced]
        going = [
            (each, token, first.finish_reason == "stop")
            for each, token, first in zip(batch, tokens, forced, strict=True)
            if token != each.row["token_id"]
        ]
        seeds = [each.seed for each, *_ in going]
        own = [(*each.row["prompt_ids"], *each.prefix_ids) for each, *_ in going]
        resampled = _generate(run, own, seeds, run.experiment.sampling)
        # A forced end token ends the response: nothing goes on after it.
        open_ = [
            ((*prompt, token), seed)
            for (_, token, ends), prompt, seed in zip(going, own, seeds, strict=True)
            if not ends
        ]
        continued = iter(
            _generate(run, [prompt for prompt, _ in open_], [seed for _, seed in open_],
                      run.experiment.sampling)
        )  # fmt: skip
        after = [() if ends else next(continued).token_ids for *_, ends in going]
        answered = [
            Answered(f"{each.branch_id} {kind}", each.problem, (*each.prefix_ids, *ids))
            for (each, token, _), ids, free in zip(going, after, resampled, strict=True)
            for kind, ids in (("forced", (token, *ids)), ("own", free.token_ids))
        ]
        right = [bool(grade["correct"]) for grade in graded(run, answered)]
    advance(len(batch))
    outcomes = {
        each.branch_id: {
            "response_ids": ids, "correct": right[2 * place],
            "resampled_ids": resampled[place].token_ids, "resampled_correct": right[2 * place + 1],
        }
        for place, ((each, *_), ids) in enumerate(zip(going, after, strict=True))
    }  # fmt: skip
    return [
        _row(run, each, token, outcomes.get(each.branch_id, AGREES))
        for each, token in zip(batch, tokens, strict=True)
    ]


AGREES: Mapping[str, object] = {
    "response_ids": (), "correct": None, "resampled_ids": (), "resampled_correct": None,
}  # fmt: skip


def _generate(
    run: ConditionRun,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
) -> list[Completion]:
    if not prompts:
        return []
    policy = run.policy(0)
    engine = run.session.models.engine(run, policy.round, policy.policy_id)
    requests = [Request(ids, seed) for ids, seed in zip(prompts, seeds, strict=True)]
    settings = fitting(run, sampling, max(map(len, prompts)), "diagnose.branches")
    return list(engine.generate(requests, settings, lambda _finished, _tokens: None))


def _row(
    run: ConditionRun, branch: Branch, forced_id: int, outcome: Mapping[str, object]
) -> dict[str, object]:
    copied = ("policy_id", "rollout_id", "problem_id", "context", "position")
    return (
        run.columns
        | {name: branch.row[name] for name in copied}
        | {
            "branch_id": branch.branch_id,
            "sampling_seed": branch.seed,
            "forced_id": forced_id,
            "agrees": forced_id == branch.row["token_id"],
        }
        | dict(outcome)
    )
