"""A finished run that the tests of a file share."""

import pytest

from tests.helpers.small import printed, run


@pytest.fixture(scope="module")
def finished(prefect, tmp_path_factory):
    """Workspace of a small run, and the tables that it printed."""
    workspace = tmp_path_factory.mktemp("finished")
    return workspace, printed(run(workspace))
