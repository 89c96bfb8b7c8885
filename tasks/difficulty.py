"""Stage 1½, where an experiment asks for it: the problems that are hard, but learnable."""

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.config import BandConfig
from sdcore.critics import has_oracle
from sdcore.difficulty import measure
from sdcore.errors import DataError
from sdcore.timing import STOPWATCH
from tasks.progress import note
from tasks.sample import sample_missing
from tasks.workspace import Lineage, Reference, candidates, policy_row


@task(cache_policy=NO_CACHE, task_run_name="measure difficulty of {split} problems")
def measure_difficulty(base: Lineage, split: str) -> Reference:
    """Measure candidates of a split, so many at a time as are wanted, until enough are in the band.

    Raises:
        DataError: too few of all candidates are.
    """
    band, offered = base.experiment.problems.band, candidates(base, split)
    assert band is not None, "the experiment has no band"
    wanted: int = getattr(base.experiment.problems, split)
    found = 0
    for chunk in offered.iter_slices(wanted):
        found += _measure(base, chunk, band)
        if found >= wanted:
            break
    else:
        raise DataError(
            f"too few {split} problems are hard but learnable",
            got=f"{found} of {len(offered)}",
            expected=f"{wanted} with {band}",
            mend="widen problems.band, or raise problems.band.candidates; the table difficulties "
            "has the measures",
        )
    note(f"{split}: {found} problems of {len(offered)} candidates are hard but learnable")
    return Reference("difficulties", split, found)


def _measure(base: Lineage, problems: pl.DataFrame, band: BandConfig) -> int:
    """Sample and store what is missing of these difficulties; how many are in the band."""
    sample_missing(base, 0, "filter", problems, band.samples)
    policy = policy_row(base, 0)["policy_id"]
    rollouts = base.store.rows("rollouts", policy_id=policy, purpose="filter", **base.columns)
    solves = True if has_oracle(base.experiment.problems) else None
    with STOPWATCH.measure("compute"):
        rows = measure(
            rollouts.join(problems, on="problem_id", how="semi"),
            dict.fromkeys(problems["problem_id"], solves),
            band,
        )
    experiment = pl.lit(base.experiment.experiment_id)
    base.store.append_missing(difficulties=rows.with_columns(experiment_id=experiment))
    return int(rows["in_band"].sum())
