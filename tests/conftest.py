"""What several test files share."""

import os
import subprocess

import pytest
from hypothesis import settings

from flows.servers import standing
from sdcore.system.ports import answers, free_port
from tests.helpers.small import printed, run

# The same examples each time, unless asked for more: `--hypothesis-profile=night`.
settings.register_profile("sample", max_examples=50, derandomize=True, deadline=None)
settings.register_profile("night", max_examples=5000, deadline=None)
settings.load_profile("sample")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    """A standing server for the runs of a file: each would take as long to start its own.

    Gives the folder with all that it stores.
    """
    address = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("prefect")
    environment = standing.prefect_server(folder, address)
    with (
        subprocess.Popen(
            standing.prefect_command(address),
            env=os.environ | standing.SETTINGS | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            assert answers(f"{address}/api/health", server, standing.START_SECONDS)
            patch.setenv("PREFECT_API_URL", f"{address}/api")
            patch.setenv("PREFECT_API_AUTH_STRING", environment["PREFECT_API_AUTH_STRING"])
            yield folder
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def finished(prefect, tmp_path_factory):
    """Workspace of a small run, and the tables that it printed."""
    workspace = tmp_path_factory.mktemp("finished")
    return workspace, printed(run(workspace))
