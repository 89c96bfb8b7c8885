"""The preflight flow: what would each context tell this model, before anything is trained?"""

from pathlib import Path

from prefect import flow

from flows.compare_contexts import ready
from sdcore.analysis.preflight import PURPOSE, Diagnosis
from sdcore.config import Experiment
from tasks.diagnose import freeze, report, score, write_contexts
from tasks.run.interrupts import stop_if_asked
from tasks.run.lineage import Lineage, base_lineage
from tasks.run.lock import turn


@flow(flow_run_name="{experiment.name}/diagnose")
def diagnose(experiment: Experiment, root: Path) -> Diagnosis:
    """Score the same frozen rollouts of the base policy under every context, and judge it.

    What the workspace folder `root` already holds is not done again.
    """
    base = base_lineage(experiment, root)
    with turn(base):
        ready(base, [experiment.diagnose.split])
    lineage = Lineage(experiment, root, PURPOSE, base.seed)
    with turn(lineage):
        for stage in (freeze, write_contexts, score):
            stage(lineage)
            stop_if_asked()
        return report(lineage)
