"""Runs whose servers keep their tables in PostgreSQL and their files behind an S3 API."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import httpx
import mlflow
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from sdcore.config import load_experiment
from sdcore.models.weight_files import folder_digest, require
from sdcore.store import parts
from sdcore.store.database import Store
from sdcore.store.parts import open_folder
from sdcore.store.schema import TABLES
from sdcore.system.holders import lock_holder
from sdcore.system.ports import answers, free_port
from tasks.cluster.checkpoints import pull, push
from tasks.run.condition_run import StoredPolicy
from tasks.run.session import DATABASE
from tasks.tracking.client import Tracking
from tests.helpers.cluster import BUCKET, PASSWORD, dumped, object_store, postgresql, stored
from tests.helpers.example import EXPERIMENT, fill
from tests.helpers.paths import QUICKSTART, ROOT
from tests.helpers.runs import assert_same, count, sdcore, wait_for
from tests.helpers.small import ID, SMALL
from tests.helpers.tiny import llama, save

pytestmark = pytest.mark.night
FILES = f"s3://{BUCKET}/mlflow"


@pytest.fixture(scope="module")
def database():
    """Address of a PostgreSQL with a database for each server."""
    with postgresql("mlflow", "prefect", "mlflow_of_pool", "prefect_of_pool") as address:
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
    assert os.listdir(mlflow.artifacts.download_artifacts(uri, tracking_uri=served))

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


@pytest.mark.usefixtures("bucket")
def test_parts_and_checkpoints_travel_through_s3(tmp_path):
    root = open_folder(f"s3://{BUCKET}/travel")
    filled = fill(Store(tmp_path / "from" / DATABASE))
    owner = {"experiment_id": EXPERIMENT.experiment_id, "condition": "reference", "seed": 1}
    attempt = root / "parts"
    attempt.make()
    sent = [parts.Part({name: filled.rows(name, **owner)}) for name in ("policies", "rollouts")]
    assert parts.names(attempt) == []
    written = [parts.write(attempt, part, number) for number, part in enumerate(sent, 1)]
    assert parts.names(attempt) == written  # though the folder was listed before
    store = Store(tmp_path / "to" / DATABASE)
    for name in (*written, *written):
        parts.merge(store, parts.read(attempt, name), owner)
        assert attempt.has(name)
    for part in sent:
        for name, frame in part.frames.items():
            key = TABLES[name].key
            assert store.rows(name).sort(key).equals(frame.sort(key))
    attempt.files.rm_file(f"{attempt.path}/{written[0]}")
    assert parts.names(attempt) == written[1:] and parts.read(attempt, written[0]) is None

    policy = StoredPolicy("e", "base", 0, "p", None, 0, 0, "full", None, "")
    save(llama(), tmp_path / "from" / policy.checkpoint)
    policy = replace(policy, sha256=folder_digest(tmp_path / "from" / policy.checkpoint))
    for _ in range(2):
        push(tmp_path / "from", policy, root)
        pull(tmp_path / "to", policy, root, resumable=True)
    require(tmp_path / "to" / policy.checkpoint, policy.sha256)
    root.remove()
    assert not [key for key in stored() if key.startswith("travel")]


AUTH = "ada:s3cret-of-Prefect"
DEFAULT_PORTS = {"prefect": "4200", "mlflow": "5000"}


class Platform:
    """The servers of compose.yaml as processes of this machine, and workers of its pool."""

    def __init__(self, database: str, folder: Path) -> None:
        self.folder, self._stack = folder, ExitStack()
        ports = {"prefect": free_port(), "mlflow": free_port()}
        self.mlflow = f"http://127.0.0.1:{ports['mlflow']}"
        self.api = f"http://127.0.0.1:{ports['prefect']}/api"
        place = database.partition("@")[2]
        self._environment = os.environ | {
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "SDCORE_WORKSPACE": str(folder / "workspace"),
        }
        tables = {
            "PGPASSWORD": PASSWORD,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": (
                f"postgresql+asyncpg://ada@{place}/prefect_of_pool"
            ),
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://ada@{place}/mlflow_of_pool",
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/pool",
        }
        self.services = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())[
            "services"
        ]
        for name, health in (("prefect", f"{self.api}/ready"), ("mlflow", f"{self.mlflow}/health")):
            here = {"0.0.0.0": "127.0.0.1", DEFAULT_PORTS[name]: str(ports[name])}
            command = [here.get(word, word) for word in self.services[name]["command"]]
            server = self.start(name, *command, **tables)
            assert answers(health, server, 300), (folder / f"{name}.log").read_text()

    def start(self, name: str, *command: object, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program of this environment; its output goes to a log."""
        program = [sys.executable, "-m", *map(str, command)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                program, cwd=ROOT, env=self._environment | variables, stdout=log, stderr=log
            )
        self._stack.callback(kill_all, process)
        return process

    def call(self, *command: object) -> None:
        """Run a program of this environment to its end."""
        name = f"call-{len(list(self.folder.iterdir()))}"
        done = self.start(name, *command).wait()
        assert done == 0, (self.folder / f"{name}.log").read_text()

    def states(self) -> list[str]:
        """The states of all flow runs, by type."""
        runs = httpx.post(f"{self.api}/flow_runs/filter", json={}, auth=tuple(AUTH.split(":")))
        return [run["state_type"] for run in runs.raise_for_status().json()]

    def close(self) -> None:
        """End all that was started."""
        self._stack.close()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, as a node that goes down does."""
    if process.poll() is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()


def holders(workspace: Path) -> Iterator[int]:
    """Processes that train a condition."""
    for lock in (workspace / "checkpoints" / ID).glob("*/seed-3.lock"):
        if lock.parent.name != "base" and (pid := lock_holder(lock)):
            yield pid


@pytest.fixture
def platform(database, bucket, tmp_path, monkeypatch):
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    running = Platform(database, tmp_path)
    yield running
    running.close()


def test_two_workers_of_a_pool_of_which_one_is_killed_leave_the_rows_of_one_run(finished, platform):
    workspace = platform.folder / "workspace"
    platform.call("prefect", "work-pool", "create", "--overwrite", "--type", "process", "sdcore")
    file = ["--prefect-file", "deployments/prefect.yaml", "--name", "quickstart"]
    platform.call("prefect", "--no-prompt", "deploy", *file, "--concurrency-limit", 2)
    work = platform.services["worker"]["command"]
    workers = [platform.start(f"worker-{number}", *work) for number in (1, 2)]
    settings = ["--param", f"experiment={QUICKSTART}", "--param", f"overrides={json.dumps(SMALL)}"]
    for _ in workers:
        platform.call("prefect", "deployment", "run", "compare-contexts/quickstart", *settings)

    def both_train() -> bool:
        there = (workspace / DATABASE).exists() and count(workspace, "updates")
        return bool(there) and len(set(holders(workspace))) == 2

    wait_for(workers[0], both_train)
    victim = next(holders(workspace))
    lost, other = sorted(
        workers,
        key=lambda each: victim not in [p.pid for p in psutil.Process(each.pid).children(True)],
    )
    kill_all(lost)
    wait_for(other, lambda: "COMPLETED" in platform.states())
    assert_same(workspace, finished[0], platform.mlflow)
    assert any(key.startswith("pool/") for key in stored())
    logs = [path.read_text() for path in platform.folder.glob("*.log")]
    assert not any(PASSWORD in log or AUTH in log for log in logs)
    assert not (workspace / "mlflow.db").exists() and not (workspace / "prefect").exists()
