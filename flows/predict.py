"""Does the preflight predict? A finished run's gains against the measures of its preflight."""

from pathlib import Path

from prefect import flow

from flows.diagnose import diagnose
from sdcore.config import Experiment
from sdcore.reports.prediction import Prediction
from tasks.growth import grown
from tasks.predict import compare_with_gains
from tasks.run.condition_run import base_run
from tasks.run.lock import run_lock
from tasks.run.session import Session
from tasks.track import tracked


@flow(flow_run_name="{experiment.name}/predict")
def predict(experiment: Experiment, root: Path) -> Prediction:
    """Correlate the preflight's measures with the training gains of a finished run.

    What is missing of the preflight is made first; it looks at the base policy alone.
    """
    found = diagnose.fn(experiment, root)
    with Session(root) as session:
        base = grown(base_run(session, experiment))
        with run_lock(base), tracked(base):
            return compare_with_gains(base, found)
