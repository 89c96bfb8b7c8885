"""The work of a cluster's node: one condition and seed, in a workspace of its own.

It imports neither Prefect nor torch: Prefect reads its settings when it is imported, and they name
the server that is started here.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import sdcore
from flows.servers.own import prefect_server
from sdcore.config import Experiment
from sdcore.errors import ConfigError, SdcoreError


def train_here(
    version: str, settings: str, condition: str, seed: int, attempt: str
) -> SdcoreError | None:
    """Train a condition and seed on this machine and send what is made to the cluster's root.

    Args:
        version: of sdcore, where the run was started.
        settings: the experiment as JSON.
        condition: the condition.
        seed: the seed.
        attempt: see `flows.worker.train_attempt`.

    Returns:
        The error that it ended with, if there was one: who starts this raises it.
    """
    try:
        if version != sdcore.__version__:
            raise ConfigError(
                "a node has another version of sdcore",
                got=sdcore.__version__,
                expected=version,
                fix="install the same one on every node",
            )
        experiment = Experiment.model_validate_json(settings)
        with TemporaryDirectory(prefix="sdcore-", ignore_cleanup_errors=True) as folder:
            workspace = Path(folder)
            with prefect_server(workspace) as address:
                from flows.worker import train_attempt  # noqa: PLC0415 - see above

                address()
                train_attempt(experiment, condition, seed, attempt, workspace)
    except SdcoreError as error:
        return error
    return None
