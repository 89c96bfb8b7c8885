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


@pytest.fixture(scope="session")
def prefect_service(tmp_path_factory):
    """A standing server for all runs of this process: each would take as long to start its own.

    Gives the folder with all that it stores, and the environment of its clients.
    """
    address = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("prefect")
    environment = standing.prefect_server(folder, address)
    with subprocess.Popen(
        standing.prefect_command(address),
        cwd=folder / "prefect",
        env=os.environ | standing.SETTINGS | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert answers(f"{address}/api/health", process, standing.START_SECONDS)
            key = "PREFECT_API_AUTH_STRING"
            yield folder, {"PREFECT_API_URL": f"{address}/api", key: environment[key]}
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def prefect(prefect_service):
    """The runs of a file use the standing server; gives the folder with all that it stores."""
    folder, environment = prefect_service
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="session")
def finished(prefect_service, tmp_path_factory):
    """Workspace of a small run, and the tables that it printed. Change a copy, not this one."""
    workspace = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_service[1].items():
            patch.setenv(name, value)
        return workspace, printed(run(workspace))
