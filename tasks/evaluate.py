"""Stage 5: a policy's score on a split it never trains on."""

import time
from collections.abc import Sequence
from itertools import product

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis.scoring import score
from sdcore.rollouts import Rollout
from sdcore.schedule import checkpoint_rounds
from sdcore.store.schema import TABLES
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.progress import note
from tasks.run.retries import RETRIES
from tasks.sample import sample_missing, stored_rollouts

SPLITS = ("validation", "test")
_SAMPLED = """
    SELECT coalesce(sum(len(response_ids)), 0)::BIGINT FROM rollouts
    WHERE experiment_id = $experiment_id AND condition = $condition AND seed = $seed
        AND purpose = 'train' AND round < $round
"""


def splits_of(run: ConditionRun) -> Sequence[str]:
    """The splits on which a run is scored while it trains: a trial on validation only."""
    return ["validation"] if run.condition in run.experiment.trials else SPLITS


def is_trained(run: ConditionRun) -> bool:
    """Return whether a run has all the scores that it gets while it trains."""
    stops = run.store.rows("stops", **run.columns)
    last = stops["good_round"].item() if len(stops) else run.experiment.training.rounds
    due = {round_ for round_ in checkpoint_rounds(run.experiment, run.settings) if round_ < last}
    wanted = set(product(due | ({last} - {0}), splits_of(run)))
    scores = run.store.rows("scores", **run.columns)
    return wanted <= set(scores.select("round", "split").iter_rows())


@task(
    cache_policy=NO_CACHE,
    task_run_name="evaluate {run.label} round {policy.round} on {split}",
    **RETRIES,
)
def evaluate(run: ConditionRun, policy: StoredPolicy, split: str) -> float:
    """Sample, grade and score a policy on a split, unless it is scored already.

    Returns:
        avg@k.
    """
    settings = run.experiment.evaluation
    samples = settings.samples if split == "test" else settings.validation_samples
    key = run.key("score", policy.policy_id, split, samples)
    stored = run.store.rows("scores", score_id=key)
    if len(stored):
        return float(stored["avg_at_k"].item())
    start = time.perf_counter()
    known = stored_rollouts(run, policy, split)
    rollouts = sample_missing(run, policy, split, run.problems(split), samples, known)
    with run.session.clock.measure("analysis"):
        scored = score(Rollout.to_frame(rollouts), k=samples, settings=settings)
    before = run.columns | {"round": policy.round}
    row = run.columns | {
        "score_id": key,
        "policy_id": policy.policy_id,
        "round": policy.round,
        "split": split,
        "sampled_tokens": run.store.query(_SAMPLED, before).item(),
        "seconds": time.perf_counter() - start,
    }
    run.store.append_missing(
        scores=TABLES["scores"].frame([row | scored.columns]),
        problem_scores=scored.problem_rows(row),
    )
    average = float(scored.columns["avg_at_k"])
    note(f"{run.label} after {policy.round} rounds: {split} avg@{samples} {average:.1%}")
    return average
