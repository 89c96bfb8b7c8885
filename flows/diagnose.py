"""The preflight flow: what would each context tell this model, before anything is trained?"""

from pathlib import Path

from prefect import flow

from sdcore.config import Experiment
from sdcore.diagnosis import PURPOSE, Diagnosis
from tasks.diagnose import criticise, freeze, report, score
from tasks.prepare import prepare
from tasks.track import start_tracking
from tasks.workspace import Lineage, base_lineage


@flow(flow_run_name="diagnose {experiment.name}")
def diagnose(experiment: Experiment, root: Path) -> Diagnosis:
    """Score the same frozen rollouts of the untrained policy under every context, and judge it.

    What the workspace folder `root` already holds is not done again.
    """
    base = base_lineage(experiment, root)
    prepare(base)
    start_tracking(base)
    lineage = Lineage(experiment, root, PURPOSE, base.seed)
    freeze(lineage)
    criticise(lineage)
    score(lineage)
    return report(lineage)
