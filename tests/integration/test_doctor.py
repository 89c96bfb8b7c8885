"""What the doctor finds on this machine and in workspaces made for it."""

import socket

import pytest

from flows.servers import doctor
from flows.servers.doctor import examine
from sdcore.store.database import Store
from sdcore.system.ports import free_port
from tests.unit.store.test_database import frame, problem


def findings(root, **ports):
    chosen = {"prefect": free_port(), "mlflow": free_port()} | ports
    return {finding.name: finding for finding in examine(root, chosen)}


def test_a_new_workspace_on_this_machine_is_fine(tmp_path):
    root = tmp_path / "new"
    found = findings(root)
    assert found["python"].state == found["libraries"].state == found["disk"].state == "ok"
    assert found["services"].found == "down" and not root.exists()


def test_every_finding_that_is_not_ok_has_a_fix(tmp_path):
    (tmp_path / "sdcore.duckdb").write_text("not a database")
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = findings(tmp_path, mlflow=server.getsockname()[1])
    assert found["mlflow port"].state == found["tables"].state == "warn"
    assert all(finding.fix for finding in found.values() if finding.state != "ok")


def test_tables_are_counted(tmp_path):
    Store(tmp_path / "sdcore.duckdb").append_missing(problems=frame(problem(0), problem(1)))
    assert findings(tmp_path)["tables"].found == "2 problems"


def test_services_that_died_are_reported(tmp_path):
    (tmp_path / "services.json").write_text('{"prefect": 1, "mlflow": 2}')
    assert "gone: prefect, mlflow, deployments" in findings(tmp_path)["services"].found


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [("polars>=2.1,<3", None), ("polars<1", "is not <1"), ("no-such-library>=1", "not installed")],
)
def test_requirements_are_compared_with_what_is_installed(requirement, expected):
    found = doctor._unmet(doctor.Requirement(requirement))
    assert found is None if expected is None else expected in found
