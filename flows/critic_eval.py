"""The flow that measures a critic, apart from any training."""

from pathlib import Path
from typing import Any

from prefect import flow

from sdcore.config import Experiment
from sdcore.critics.benchmark import balanced, make_trials, read_processbench
from tasks.critic_eval import CONDITION, criticise_trials, score_critic
from tasks.run.condition_run import ConditionRun
from tasks.run.lock import run_lock
from tasks.run.session import Session


@flow(flow_run_name="{experiment.name}/critic")
def critic_eval(
    experiment: Experiment, root: Path, solutions: int, processbench: Path | None = None
) -> dict[str, Any]:
    """Scores of the experiment's critic on its own problems, or on a file of judged solutions.

    Without a file, right and corrupted solutions of `solutions` problems are made.
    """
    if processbench is None:
        trials = make_trials(experiment.problems, solutions, experiment.seeds[0])
    else:
        trials = balanced(read_processbench(processbench), solutions, experiment.seeds[0])
    with Session(root) as session:
        run = ConditionRun(session, experiment, CONDITION, experiment.seeds[0])
        with run_lock(run):
            return score_critic(run, criticise_trials(run, trials))
