"""Stage 5: a policy's score on a split it never trains on."""

import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis.scoring import score
from sdcore.store.schema import TABLES
from sdcore.system.stopwatch import STOPWATCH
from tasks.run.lineage import Lineage, Reference, policy_row, split_problems
from tasks.run.progress import note
from tasks.run.retries import RETRIES
from tasks.sample import sample_missing


@task(
    cache_policy=NO_CACHE,
    task_run_name="evaluate {lineage.label} round {round_} on {split}",
    **RETRIES,
)
def evaluate(lineage: Lineage, round_: int, split: str) -> Reference:
    """Sample, grade and score the policy after `round_` rounds on a split."""
    settings = lineage.experiment.evaluation
    samples = settings.samples if split == "test" else settings.validation_samples
    policy = policy_row(lineage, round_)["policy_id"]
    key = lineage.key("score", policy, split, samples)
    if key not in lineage.stored.scores:
        start = time.perf_counter()
        tokens = sum(n for of, n in lineage.stored.tokens.items() if of < round_)
        problems = split_problems(lineage, split)
        rollouts = sample_missing(lineage, round_, split, problems, samples)
        with STOPWATCH.measure("compute"):
            scored = score(rollouts, k=samples, settings=settings)
        row = lineage.columns | {
            "score_id": key,
            "policy_id": policy,
            "round": round_,
            "split": split,
            "sampled_tokens": tokens,
            "seconds": time.perf_counter() - start,
        }
        lineage.store.append_soon(
            scores=TABLES["scores"].frame([row | scored.columns]),
            problem_scores=scored.problem_rows(row),
        )
        lineage.stored.scores.add(key)
        result = f"{split} avg@{samples} {scored.columns['avg_at_k']:.1%}"
        note(f"{lineage.label} after {round_} rounds: {result}")
    return Reference("scores", key, 1)
