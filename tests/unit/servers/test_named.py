"""Servers and databases that the environment names: what is said of them, what is refused."""

import json
import os

import pytest

from flows.doctor import workspace
from flows.servers import standing
from flows.servers.named import named
from sdcore.errors import ConfigError
from tasks.tracking import stores
from tasks.tracking.stores import shared_store, workspace_id

POSTGRES = "postgresql://ada:s3cret%2Fword@db.example:5433/mlflow?sslmode=require"
SERVER = "https://ada:s3cret/word@mlflow.example"
BUCKET = "s3://bucket/sdcore"
VARIABLES = (stores.TRACKING, stores.ARTIFACTS, "PREFECT_API_URL", *standing.PREFECT_TABLES)


@pytest.fixture
def environment(monkeypatch):
    """Sets variables; at first none of those that name a server is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def given(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return given


def test_without_a_variable_all_is_in_the_workspace(tmp_path, environment):
    environment(MLFLOW_TRACKING_URI="", PREFECT_API_URL="", MLFLOW_DEFAULT_ARTIFACT_ROOT=BUCKET)
    assert named(tmp_path) == {} and shared_store(tmp_path) is None
    tables = standing.prefect_server(tmp_path, "http://127.0.0.1:1")
    assert tables[standing.PREFECT_TABLES[0]] == "sqlite+aiosqlite:///prefect.db"
    mlflow = standing._mlflow(tmp_path)
    assert mlflow["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"
    assert mlflow["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == (tmp_path / "mlflow-artifacts").as_uri()


def test_what_is_followed_is_said_without_its_login(tmp_path, environment):
    prefect = "postgresql+asyncpg://eve:an0ther@db.example/prefect"
    environment(
        MLFLOW_TRACKING_URI=POSTGRES,
        MLFLOW_DEFAULT_ARTIFACT_ROOT=BUCKET,
        PREFECT_SERVER_DATABASE_CONNECTION_URL=prefect,
    )
    lines = named(tmp_path)
    assert list(lines.values()) == [
        "MLflow: postgresql://db.example:5433/mlflow, files in s3://bucket/sdcore "
        "(MLFLOW_TRACKING_URI, MLFLOW_DEFAULT_ARTIFACT_ROOT)",
        "Prefect's tables: postgresql+asyncpg://db.example/prefect "
        "(PREFECT_SERVER_DATABASE_CONNECTION_URL)",
    ]
    assert standing.PREFECT_TABLES[0] not in standing.prefect_server(tmp_path, "http://h:1")
    environment(PREFECT_API_URL="https://eve:an0ther@prefect.example/api")  # whose tables they are
    (_, api) = named(tmp_path).values()
    assert api == "Prefect: https://prefect.example/api (PREFECT_API_URL)"
    assert named(tmp_path, up=True) == lines  # the server that starts there has its own address
    assert "s3cret" not in repr(shared_store(tmp_path))


def test_the_tables_address_stands_in_no_argument_of_a_process(tmp_path, environment):
    environment(MLFLOW_TRACKING_URI=POSTGRES, MLFLOW_DEFAULT_ARTIFACT_ROOT=BUCKET)
    command = standing._mlflow_command("http://127.0.0.1:1")
    assert not any("postgresql" in argument for argument in command)
    given = standing._mlflow(tmp_path)
    assert given["MLFLOW_BACKEND_STORE_URI"] == given["MLFLOW_REGISTRY_STORE_URI"] == POSTGRES
    assert given["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == BUCKET


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MLFLOW_TRACKING_URI": "databricks"}, "unset MLFLOW_TRACKING_URI"),
        ({"MLFLOW_TRACKING_URI": "sqlite:///s3cret.db"}, "unset MLFLOW_TRACKING_URI"),
        ({"MLFLOW_TRACKING_URI": "mysql://u:s3cret@h/d"}, "mysql://h/d"),
        ({"MLFLOW_TRACKING_URI": POSTGRES}, "MLFLOW_DEFAULT_ARTIFACT_ROOT"),
        ({"MLFLOW_TRACKING_URI": POSTGRES, "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlruns"}, "mlruns"),
    ],
)
def test_an_mlflow_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path, environment, variables, said
):
    environment(**variables)
    with pytest.raises(ConfigError) as raised:
        named(tmp_path)
    assert said in str(raised.value) and "s3cret@" not in str(raised.value)


@pytest.mark.parametrize(("library", "uri"), [("psycopg", POSTGRES), ("boto3", POSTGRES)])
def test_a_library_that_is_missing_is_named(tmp_path, environment, monkeypatch, library, uri):
    environment(MLFLOW_TRACKING_URI=uri, MLFLOW_DEFAULT_ARTIFACT_ROOT=BUCKET)
    monkeypatch.setattr(stores, "find_spec", lambda name: None if name == library else object())
    with pytest.raises(ConfigError, match=rf"(?s){library} .*sdcore\[cluster\]"):
        shared_store(tmp_path)


def test_a_workspace_keeps_to_its_own_file(tmp_path, environment):
    (tmp_path / "mlflow.db").touch()
    assert shared_store(tmp_path) is None
    environment(MLFLOW_TRACKING_URI=SERVER)
    with pytest.raises(ConfigError, match="own file") as raised:
        shared_store(tmp_path)
    assert "https://mlflow.example" in str(raised.value) and "s3cret" not in str(raised.value)


def test_a_workspace_keeps_to_a_shared_store_whatever_the_login(tmp_path, environment, monkeypatch):
    environment(MLFLOW_TRACKING_URI=SERVER)
    own = workspace_id(tmp_path, shared_store(tmp_path))
    assert workspace_id(tmp_path, shared_store(tmp_path)) == own
    assert workspace_id(tmp_path.parent, shared_store(tmp_path)) != own
    assert "s3cret" not in (tmp_path / stores.NOTE).read_text()
    environment(MLFLOW_TRACKING_URI="https://bob:0ther@mlflow.example")
    assert shared_store(tmp_path).shown == "https://mlflow.example"
    environment(MLFLOW_TRACKING_URI="https://elsewhere.example")
    with pytest.raises(ConfigError, match="logged elsewhere"):
        shared_store(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # as on a machine where nobody has set it
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        shared_store(tmp_path)


def test_a_damaged_note_has_a_fix(tmp_path, environment):
    (tmp_path / stores.NOTE).write_text(json.dumps(["https://mlflow.example"]))
    with pytest.raises(ConfigError, match="delete it"):
        shared_store(tmp_path)


def test_up_starts_no_second_mlflow(tmp_path, environment):
    environment(MLFLOW_TRACKING_URI=SERVER)
    with pytest.raises(ConfigError, match="do without `sdcore up`"):
        standing.start(tmp_path, {})
    assert os.listdir(tmp_path) == []


def test_the_doctor_looks_for_no_file_where_the_tables_are_elsewhere(tmp_path, environment):
    environment(MLFLOW_TRACKING_URI=SERVER, PREFECT_API_URL="https://prefect.example/api")
    for name in ("mlflow", "prefect"):
        (finding,) = workspace.server(tmp_path, name)
        assert finding.state == "ok" and f"https://{name}.example" in finding.found
