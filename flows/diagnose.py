"""The preflight flow: what would each context tell this model, before anything is trained?"""

from pathlib import Path

from prefect import flow

from flows.compare_contexts import make_ready
from sdcore.analysis.preflight import PURPOSE, Diagnosis
from sdcore.config import Experiment
from tasks.branches import sample_branches
from tasks.diagnose import freeze, report, score, write_contexts
from tasks.prepare import prepare
from tasks.run.condition_run import ConditionRun, base_run
from tasks.run.lock import run_lock
from tasks.run.session import Session
from tasks.teacher import sample_teacher
from tasks.track import tracked


@flow(flow_run_name="{experiment.name}/diagnose")
def diagnose(experiment: Experiment, root: Path) -> Diagnosis:
    """Score the same frozen rollouts of the base policy under every context, and judge it.

    The base policy also samples with every context in its prompt: what can its student learn?

    What the workspace folder `root` already holds is not done again.
    """
    with Session(root) as session:
        base = base_run(session, experiment)
        with run_lock(base):
            prepare(base)
        with tracked(base):
            with run_lock(base):
                make_ready(base, [experiment.diagnose.split])
            run = ConditionRun(session, experiment, PURPOSE, base.seed)
            with run_lock(run):
                measure(run)
                return report(run)


def measure(run: ConditionRun) -> None:
    """Do what is missing: freeze rollouts, criticise and score them, sample with each context."""
    for stage in (freeze, write_contexts, sample_teacher, score, sample_branches):
        stage(run)
        run.session.interrupts.stop_if_asked()
