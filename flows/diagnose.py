"""The preflight flow: what would each context tell this model, before anything is trained?"""

from pathlib import Path

from prefect import flow

from sdcore.config import Experiment
from sdcore.diagnosis import PURPOSE, Diagnosis
from tasks.diagnose import freeze, report, score, write_contexts
from tasks.difficulty import measure_difficulty
from tasks.draining import stop_if_asked
from tasks.prepare import prepare
from tasks.track import start_tracking
from tasks.warmup import warm_up
from tasks.workspace import Lineage, base_lineage


@flow(flow_run_name="{experiment.name}/diagnose")
def diagnose(experiment: Experiment, root: Path) -> Diagnosis:
    """Score the same frozen rollouts of the base policy under every context, and judge it.

    What the workspace folder `root` already holds is not done again.
    """
    base = base_lineage(experiment, root)
    prepare(base)
    start_tracking(base)
    if experiment.warmup:
        warm_up(base)
    if experiment.problems.band:
        measure_difficulty(base, experiment.diagnose.split)
    lineage = Lineage(experiment, root, PURPOSE, base.seed)
    for stage in (freeze, write_contexts, score):
        stage(lineage)
        stop_if_asked()
    return report(lineage)
