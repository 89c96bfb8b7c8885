"""Standing services: real servers on loopback ports made here, found again by their environment."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.servers import standing
from flows.servers.login import Login, login
from flows.servers.own import prefect_server
from sdcore.errors import SdcoreError
from sdcore.store.database import Store
from sdcore.system.ports import free_port
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import sdcore

SLEEP = "import time; time.sleep(600)"
# The child's environment can be read once it runs, not as soon as `Popen` returns.
WITH_CHILD = f"""
import subprocess, sys
child = [sys.executable, "-c", "print(flush=True); {SLEEP}"]
running = subprocess.Popen(child, stdout=subprocess.PIPE, start_new_session=True)
running.stdout.readline()
"""


def start_marked(root, name, code=""):
    """A process as `start` starts them, once it has run `code` and sleeps."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True)\n{SLEEP}"],
        env=os.environ | {"SDCORE_SERVICE": f"{name} of {root}"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process.stdout as output:
        output.readline()
    return process


def test_children_are_found_after_their_parent_was_killed(tmp_path):
    parent = start_marked(tmp_path, "deployments", WITH_CHILD)
    assert len(standing.processes(tmp_path)) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    (orphan,) = standing.processes(tmp_path)
    assert standing.stop(tmp_path) == 1
    assert not orphan.is_running() and not standing.processes(tmp_path)


def test_another_workspace_is_left_alone(tmp_path):
    other = start_marked(tmp_path / "other", "prefect")
    assert standing.stop(tmp_path) == 0
    assert other.poll() is None
    assert standing.stop(tmp_path / "other") == 1
    other.wait()
    assert not psutil.pid_exists(other.pid)


def test_a_taken_port_is_refused_and_its_holder_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SdcoreError) as error:
            standing.start(tmp_path, {"prefect": free_port(), "mlflow": port})
    assert f"(process {os.getpid()})" in str(error.value)
    assert "--mlflow-port" in error.value.fix
    assert not standing.processes(tmp_path) and not standing.was_started(tmp_path)


@pytest.mark.parametrize("command", [["run", str(QUICKSTART)], ["up"]])
def test_a_workspace_that_cannot_be_written_is_refused(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = sdcore(*command, "--workspace", tmp_path / "file", check=False)
    assert result.returncode == 1
    assert "the workspace cannot be written" in result.stderr and "--workspace" in result.stderr


def test_a_port_in_time_wait_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side waits for stray packets from now on
        client.close()
        assert not standing.is_free(port)
    assert standing.is_free(port)


def test_the_users_server_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    environment = standing.environment(tmp_path)
    assert environment["PREFECT_API_URL"] == "http://prefect.example/api"
    assert "PREFECT_HOME" not in environment and "PREFECT_API_AUTH_STRING" not in environment


SECRET = "sk-in-a-block"
FOREIGN = {
    "without the key": {},
    "with a wrong key": {"Authorization": f"Basic {Login('wrong').encoded}"},
    "from another site": {"Origin": "http://evil.example", "Authorization": "KEY"},
    "from another local page": {"Origin": "http://127.0.0.1:5555", "Authorization": "KEY"},
    "by another name of this machine": {"Host": "evil.example", "Authorization": "KEY"},
}


@pytest.fixture(scope="module")
def block(prefect):
    """The id of a Secret block on the server."""
    code = (
        "from prefect.blocks.system import Secret; "
        f"print(Secret(value={SECRET!r}).save('critic-key', True))"
    )
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return made.stdout.strip()


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_stranger_runs_nothing_and_reads_no_secret(prefect, block, headers):
    api, known = os.environ["PREFECT_API_URL"], f"Basic {login(prefect).encoded}"
    headers = {name: known if value == "KEY" else value for name, value in headers.items()}
    secret = f"/block_documents/{block}?include_secrets=true"
    flow_run = {"flow_id": block, "parameters": {"overrides": ["engine.python=/bin/true"]}}
    for method, path, body in (
        ("GET", secret, None), ("POST", "/flow_runs/", flow_run), ("POST", "/flows/filter", {}),
        ("POST", "/deployments/", flow_run), ("GET", "/admin/settings", None),
    ):  # fmt: skip
        answer = httpx.request(method, f"{api}{path}", json=body, headers=headers)
        assert answer.status_code in (400, 401, 403) and SECRET not in answer.text
        assert answer.headers.get("Access-Control-Allow-Origin") is None
    socket = api.replace("http:", "ws:") + "/events/out"
    with pytest.raises((InvalidStatus, ConnectionClosed)), connect(socket) as stream:  # no key
        stream.recv(timeout=60)


def test_the_owner_reads_the_secret_with_the_key(prefect, block):
    secret = f"{os.environ['PREFECT_API_URL']}/block_documents/{block}?include_secrets=true"
    assert SECRET in httpx.get(secret, auth=("sdcore", login(prefect).key)).text


def test_the_key_stands_in_no_argument_of_a_process_and_in_no_log(prefect):
    key = login(prefect).key
    arguments = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert any("flows.servers.guard" in each for each in arguments)
    assert not any(key in each for each in arguments)
    holders = [path for path in prefect.rglob("*") if path.is_file() and holds(path, key)]
    assert {path.name for path in holders} == {"login.key", "profiles.toml"}
    assert {path.stat().st_mode & 0o777 for path in holders} == {0o600}


def holds(path, key):
    content = path.read_bytes()
    return any(form in content for form in (key.encode(), Login(key).encoded.encode()))


@pytest.mark.slow
def test_up_serves_runs_use_it_and_down_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ports = {"prefect": free_port(), "mlflow": free_port()}
    address = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    where = ["--workspace", tmp_path]
    options = [text for name, port in ports.items() for text in (f"--{name}-port", port)]
    try:
        printed = sdcore("up", *where, *options).stdout
        page = (tmp_path / "login.html").as_uri()
        servers = ["prefect", address["prefect"], "mlflow", address["mlflow"]]
        assert printed.split() == [*servers, "log", "in", page]
        assert sdcore("up", *where).stdout == printed
        assert all(
            row["processes"]
            for row in json.loads(sdcore("status", *where, "--json").stdout).values()
        )
        assert httpx.get(f"{address['mlflow']}/health").is_success
        known = ("sdcore", login(tmp_path).key)
        experiments = f"{address['mlflow']}/ajax-api/2.0/mlflow/experiments/search?max_results=9"
        assert [httpx.get(url).status_code for url in (address["mlflow"], experiments)] == [401] * 2
        assert "experiments" in httpx.get(experiments, auth=known).json()
        for foreign in ({"Origin": "http://127.0.0.1:5555"}, {"Host": "10.evil.example"}):
            assert httpx.get(experiments, auth=known, headers=foreign).status_code in (400, 403)
        deployments = f"{address['prefect']}/api/deployments"
        found = httpx.post(f"{deployments}/filter", json={}, auth=known).json()
        assert {"quickstart", "tiny-solver"} <= {each["name"] for each in found}
        assert not any(schedule["active"] for each in found for schedule in each["schedules"])
        quickstart = next(each["id"] for each in found if each["name"] == "quickstart")
        for harmful in ({"engine": {"python": "/bin/true"}}, {"critic": {"base_url": "http://e/"}}):
            run = {"parameters": {"experiment": "quickstart", "changes": harmful}}
            answer = httpx.post(f"{deployments}/{quickstart}/create_flow_run", json=run, auth=known)
            assert answer.status_code in (409, 422), answer.text
        monkeypatch.setattr(os, "environ", dict(os.environ))  # the next line adds to it
        read = {  # when this process imported Prefect
            PREFECT_API_URL: f"{address['prefect']}/api",
            PREFECT_API_AUTH_STRING: login(tmp_path).text,
        }
        with temporary_settings(read), prefect_server(tmp_path) as server_address:
            assert server_address() == f"{address['prefect']}/api"
    finally:
        sdcore("down", *where)
    assert not (tmp_path / "login.html").exists()
    assert not standing.processes(tmp_path) and standing.addresses(tmp_path) == {}
    assert all(standing.is_free(port) for port in ports.values())


@pytest.mark.night
def test_a_worker_of_a_process_pool_takes_the_same_file(prefect, tmp_path):
    environment = os.environ | standing.SETTINGS | {"SDCORE_WORKSPACE": str(tmp_path)}
    environment |= {"PREFECT_HOME": str(prefect / "prefect")}  # whose profile has the key
    del environment["PREFECT_API_AUTH_STRING"]

    def call(*arguments):
        command = [sys.executable, "-m", "prefect", *arguments]
        options = {"cwd": standing.PROJECT, "env": environment, "capture_output": True}
        called = subprocess.run(command, **options, text=True)
        assert called.returncode == 0, called.stdout + called.stderr

    call("work-pool", "create", "--type", "process", "sdcore")
    call("deploy", "--all", "--prefect-file", str(standing.DEPLOYMENTS))
    settings = [f"experiment={QUICKSTART}", "solutions=4"]
    call("deployment", "run", "critic-eval/critic", "--param", settings[0], "--param", settings[1])
    call("worker", "start", "--pool", "sdcore", "--run-once")
    assert len(Store(tmp_path / "sdcore.duckdb").rows("critic_trials")) == 4
