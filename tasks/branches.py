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
    ids = problems["problem_id"].to_list()
    planned = preflight.branch_points(run.store, run.experiment, ids, run.condition)
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
    sampling = run.experiment.sampling
    greedy = sampling.model_copy(update={"temperature": 0, "max_new_tokens": 1})
    with run.session.clock.measure("compute"):
        shown = {
            each.branch_id: (*each.row["teacher_prompt_ids"], *each.prefix_ids) for each in batch
        }
        first = _continued(run, batch, shown, greedy)
        forced = {key: completion.token_ids[0] for key, completion in first.items()}
        other = [each for each in batch if forced[each.branch_id] != each.row["token_id"]]
        own = {each.branch_id: (*each.row["prompt_ids"], *each.prefix_ids) for each in other}
        # A forced end token ends the response: nothing goes on after it.
        open_ = {
            key: (*ids, forced[key])
            for key, ids in own.items()
            if first[key].finish_reason != "stop"
        }
        resampled = _continued(run, batch, own, sampling)
        after = _continued(run, batch, open_, sampling)
        own_ids = {key: each.token_ids for key, each in resampled.items()}
        forced_ids = {key: after[key].token_ids if key in after else () for key in own}
        began = {key: (forced[key], *ids) for key, ids in forced_ids.items()}
        correct, own_correct = (_correct(run, other, ids) for ids in (began, own_ids))
    advance(len(batch))
    return [
        _row(run, each)
        | {
            "forced_id": forced[each.branch_id],
            "agrees": each.branch_id not in own,
            "response_ids": forced_ids.get(each.branch_id, ()),
            "correct": correct.get(each.branch_id),
            "resampled_ids": own_ids.get(each.branch_id, ()),
            "resampled_correct": own_correct.get(each.branch_id),
        }
        for each in batch
    ]


def _continued(
    run: ConditionRun,
    batch: Sequence[Branch],
    prompts: Mapping[str, tuple[int, ...]],
    sampling: SamplingConfig,
) -> dict[str, Completion]:
    """Return the base policy's samples after the prompts, with their seeds, by branch id."""
    if not prompts:
        return {}
    policy = run.policy(0)
    engine = run.session.models.engine(run, policy.round, policy.policy_id)
    seeds = {each.branch_id: each.seed for each in batch}
    requests = [Request(ids, seeds[key]) for key, ids in prompts.items()]
    settings = fitting(run, sampling, max(map(len, prompts.values())), "diagnose.branches")
    completions = engine.generate(requests, settings, lambda _finished, _tokens: None)
    return dict(zip(prompts, completions, strict=True))


def _correct(
    run: ConditionRun, branches: Sequence[Branch], ids: Mapping[str, Sequence[int]]
) -> dict[str, bool]:
    """Return whether the traces are right that go on with these tokens, by the branches' ids."""
    answered = [
        Answered(each.branch_id, each.problem, (*each.prefix_ids, *ids[each.branch_id]))
        for each in branches
    ]
    grades = zip(answered, graded(run, answered), strict=True)
    return {each.sample_id: bool(grade["correct"]) for each, grade in grades}


def _row(run: ConditionRun, branch: Branch) -> dict[str, object]:
    copied = ("policy_id", "rollout_id", "problem_id", "context", "position")
    return (
        run.columns
        | {name: branch.row[name] for name in copied}
        | {"branch_id": branch.branch_id, "sampling_seed": branch.seed}
    )
