"""Runs whose servers keep their tables in PostgreSQL and their files behind an S3 API."""

import json
from contextlib import closing

import mlflow
import pytest
from mlflow import MlflowClient

from sdcore.config import load_experiment
from tasks.tracking.client import Tracking
from tests.helpers.cluster import BUCKET, PASSWORD, dumped, object_store, postgresql, stored
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import assert_same, sdcore
from tests.helpers.small import SMALL

pytestmark = pytest.mark.night
FILES = f"s3://{BUCKET}/mlflow"


@pytest.fixture(scope="module")
def database():
    """Address of a PostgreSQL with a database for each server."""
    with postgresql("mlflow", "prefect") as address:
        yield address


@pytest.fixture(scope="module")
def bucket():
    """Environment of an S3 API's clients, which this process has too."""
    with object_store() as environment:
        yield environment


@pytest.fixture
def served(database, bucket, monkeypatch):
    """Name both to a run; gives the address of MLflow's tables."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    prefect = f"{database}/prefect".replace("postgresql:", "postgresql+asyncpg:")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", prefect)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{database}/mlflow")
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", FILES)
    return f"{database}/mlflow"


def test_a_run_on_postgresql_and_s3_leaves_the_rows_of_one_on_files(
    finished, served, database, tmp_path
):
    result = sdcore("run", QUICKSTART, *SMALL, "--workspace", tmp_path)
    place = database.partition("@")[2]
    assert f"MLflow: postgresql://{place}/mlflow, files in {FILES}" in result.stderr
    assert f"Prefect's tables: postgresql+asyncpg://{place}/prefect" in result.stderr
    assert_same(tmp_path, finished[0], served)
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "mlflow-artifacts").exists()
    assert not (tmp_path / "prefect" / "prefect.db").exists()

    version = MlflowClient(served).get_model_version_by_alias("quickstart", "champion")
    assert version.source.startswith(FILES)
    assert any(key.endswith("/MLmodel") for key in stored())
    uri = f"models:/{version.name}/{version.version}"
    monkeyed = mlflow.artifacts.download_artifacts(uri, tracking_uri=served)
    assert monkeyed

    texts = [result.stdout, result.stderr, dumped(served), dumped(f"{database}/prefect")]
    assert "flow_run" in texts[-1]
    assert not any(PASSWORD in text for text in texts)
    files = {**stored(), **{str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}}
    assert [name for name, content in files.items() if PASSWORD.encode() in content] == []

    settings = load_experiment(QUICKSTART, SMALL)
    with closing(Tracking(tmp_path)) as first, closing(Tracking(tmp_path / "2")) as second:
        assert first.champion(settings) is not None
        assert second.champion(settings) is None  # it has not trained it
        assert second.page(settings) != first.page(settings)  # a run of its own

    doctor = sdcore("doctor", "--workspace", tmp_path, "--json", check=False)
    found = {each["name"]: each["found"] for each in json.loads(doctor.stdout)}
    assert "postgresql://" in found["mlflow"] and "postgresql+asyncpg://" in found["prefect"]
    assert PASSWORD not in doctor.stdout


def test_a_wrong_password_is_said_at_once_and_not_shown(served, database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.replace(PASSWORD, "wr0ng-passw0rd"))
    result = sdcore("run", QUICKSTART, *SMALL, "--workspace", tmp_path, check=False)
    assert result.returncode == 1 and "the shared MLflow cannot be used" in result.stderr
    assert "password authentication failed" in result.stderr
    texts = [result.stderr, dumped(served), dumped(f"{database}/prefect")]
    assert not any("wr0ng" in text for text in texts)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"wr0ng" in path.read_bytes() for path in files)
