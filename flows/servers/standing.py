"""A workspace's standing services: Prefect server, MLflow server and the served deployments.

Every process that is started here carries the workspace in its environment, and so do all that it
starts: that is how they are found again, even if their parents are gone.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile

import psutil
import yaml
from filelock import FileLock
from pydantic import ValidationError

from flows.servers.login import HOSTS, USER, login, remove_page, write_page, write_private
from sdcore.errors import ConfigError, SdcoreError
from sdcore.system.holders import wait_for
from sdcore.system.ports import answers, listens
from tasks.tracking.mlflow_file import artifacts_uri, follow_if_moved
from tasks.tracking.stores import ARTIFACTS, TRACKING, shared_store

NAMES = ("prefect", "mlflow", "deployments")
START_SECONDS = 300  # a busy machine needs most of them
STOP_SECONDS = 20
PROJECT = Path(__file__).parents[2]
DEPLOYMENTS = PROJECT / "deployments" / "prefect.yaml"
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command says what went wrong
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
_MARK = "SDCORE_SERVICE"
PREFECT_TABLES = (  # two names of one setting
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)
_STATE = "services.json"


def require_workspace(root: Path) -> None:
    """Make the workspace's folder, if need be, and see that it can be written.

    Raises:
        SdcoreError: it cannot.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise SdcoreError(
            "the workspace cannot be written",
            got=error,
            where=str(root),
            fix="name another folder with --workspace",
        ) from error


def environment(root: Path) -> dict[str, str]:
    """Environment of a process in the workspace, with the addresses of the services that run.

    ``PREFECT_API_URL``, where it is set already, names a server of the user's and stays; the
    workspace's key is not for that one.
    """
    own = SETTINGS | {"SDCORE_WORKSPACE": str(root)}
    found = addresses(root)
    if os.environ.get("PREFECT_API_URL") in (None, "", f"{found.get('prefect')}/api"):
        own |= prefect_client(root)
    if "prefect" in found:
        own |= {"PREFECT_API_URL": f"{found['prefect']}/api"}
    if "mlflow" in found:
        own |= {"SDCORE_MLFLOW_URL": found["mlflow"]}
    stays = (name for name in (*SETTINGS, "PREFECT_API_URL") if os.environ.get(name))
    return own | {name: os.environ[name] for name in stays}


def require_settings() -> None:
    """Import Prefect, which reads its settings then, and its settings alone.

    Raises:
        SdcoreError: Prefect refuses a variable of the environment, a profile, or the file of its
            loggers.
    """
    try:
        with redirect_stderr(StringIO()):  # it prints them, values too
            from prefect.settings import get_current_settings  # noqa: PLC0415 - after `environment`

            _require_loggers(get_current_settings().logging.config_path)
    except ValueError as error:  # pydantic's, and those of TOML
        given = sorted(name for name in os.environ if name.startswith("PREFECT_"))
        raise SdcoreError(
            "Prefect refuses its settings",
            got=_refused(error) if isinstance(error, ValidationError) else error,
            where=f"one of {', '.join(given)}",
            fix="correct or unset what you set of these variables",
        ) from error


def _require_loggers(path: Path) -> None:
    """Read the file of Prefect's loggers, if there is one, as it does when a flow is imported.

    Raises:
        SdcoreError: it cannot.
    """
    from prefect.logging.configuration import setup_logging  # noqa: PLC0415 - after `environment`

    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")  # it would wait at a pipe for ever
        setup_logging()
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # of a file of another form
        raise SdcoreError(
            "Prefect cannot read the file of its loggers",
            got=f"{type(error).__name__}: {error}",
            expected="YAML as Python's logging.config takes it",
            where=f"PREFECT_LOGGING_SETTINGS_PATH = {path}",
            fix="correct the file, or unset the variable",
        ) from error


def prefect_client(root: Path) -> dict[str, str]:
    """Prefect's folder in the workspace, and the key of its server.

    The folder's profile has the key too: a worker that is started by hand needs `PREFECT_HOME` and
    `PREFECT_API_URL` only.
    """
    home, name, text = root / "prefect", "PREFECT_API_AUTH_STRING", login(root).text
    home.mkdir(parents=True, exist_ok=True)
    profile = f'active = "sdcore"\n\n[profiles.sdcore]\n{name} = "{text}"\n'
    write_private(home / "profiles.toml", profile)
    return {"PREFECT_HOME": str(home), name: text}


def prefect_server(root: Path, address: str) -> dict[str, str]:
    """Environment of Prefect's server at this address, besides `SETTINGS`: its tables, its key.

    Start it in its folder `prefect`: its tables are there, under a name relative to it, since a
    path may hold what an address may not. A database that `PREFECT_TABLES` names takes their place.
    """
    port = address.rpartition(":")[2]
    given = any(os.environ.get(name) for name in PREFECT_TABLES)
    tables = {} if given else {PREFECT_TABLES[0]: "sqlite+aiosqlite:///prefect.db"}
    return (
        prefect_client(root)
        | tables
        | {
            "PREFECT_SERVER_API_AUTH_STRING": login(root).text,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
                f"http://{host}:{port}" for host in HOSTS
            ),
            "PREFECT_UI_API_URL": f"{address}/api",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # its log says why it ends
        }
    )


def addresses(root: Path) -> dict[str, str]:
    """Address of each server of the workspace that runs.

    Raises:
        SdcoreError: the note of their ports is damaged.
    """
    if not was_started(root):
        return {}
    try:
        stored = json.loads((root / _STATE).read_text("utf-8"))
        ports = {name: int(port) for name, port in stored.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SdcoreError(
            "the note of the services that were started cannot be read",
            got=error,
            where=str(root / _STATE),
            fix="`sdcore down`, then `sdcore up`",
        ) from error
    return {name: _address(port) for name, port in ports.items() if processes(root, name)}


@contextmanager
def starting(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the start and the end of the workspace's servers while the block runs.

    Two that made a new workspace's database at once would both fail, and two starts of the services
    end each other.

    Args:
        root: the workspace.
        say: takes a line if another process has to be waited for.
    """
    lock = FileLock(root / "prefect" / "start.lock", mode=0o600)
    wait_for(lock, "starts or stops servers of this workspace", say)
    try:
        yield
    finally:
        lock.release()


def require_listener(root: Path, address: str) -> None:
    """Wait until the workspace's Prefect server, if it is the one at an address, listens there.

    Its key is for no other program.

    Raises:
        SdcoreError: it ended, or did not listen in time.
    """
    if addresses(root).get("prefect") != address:
        return
    deadline = time.monotonic() + START_SECONDS
    while (running := processes(root, "prefect")) and time.monotonic() < deadline:
        if listens(running, address):
            return
        time.sleep(0.1)
    raise SdcoreError(
        "the workspace's Prefect server does not listen on its port",
        got="; ".join(filter(None, ["it runs" if running else "it ended", held(address)])),
        where=address,
        fix="`sdcore down`, then `sdcore up`; the log is logs/prefect.log",
    )


def processes(root: Path, *names: str) -> list[psutil.Process]:
    """The running processes of the named services, all of them by default, children included."""
    marks = {_mark(root, name) for name in names or NAMES}
    found = psutil.process_iter(["environ"])
    return [p for p in found if (p.info["environ"] or {}).get(_MARK) in marks]


def start(root: Path, ports: Mapping[str, int]) -> None:
    """Start the services on their ports and wait until they answer; all or none.

    Raises:
        SdcoreError: a port is taken, MLFLOW_TRACKING_URI names a server, or a service did not
            start.
    """
    _require_database(root)
    for name, port in ports.items():
        require_free(name, port, f"sdcore up --{name}-port N")
    (root / "logs").mkdir(parents=True, exist_ok=True)
    write_private(root / _STATE, json.dumps(ports))
    try:
        _start_all(root, {name: _address(port) for name, port in ports.items()})
        write_page(root, addresses(root))
    except BaseException:
        stop(root)
        raise


def stop(root: Path) -> int:
    """End every process of the services, those that report to a server before the server.

    Returns:
        How many there were.
    """
    count = 0
    for name in reversed(NAMES):
        while left := processes(root, name):  # one that ends may just have started another
            count += len(left)
            _end(left)
    if was_started(root):  # else a workspace that is read-only needs nothing written
        remove_page(root)
        (root / _STATE).unlink()
    return count


def was_started(root: Path) -> bool:
    """Return whether the services were started and not stopped since."""
    return (root / _STATE).exists()


def require_free(name: str, port: int, other: str) -> None:
    """Refuse a port that is taken: for whom it was meant, and how another one is given.

    Raises:
        SdcoreError: another program listens there; it is named.
    """
    if not is_free(port):
        raise SdcoreError(
            f"the port for {name} is taken",
            got=f"{port}, held by {holder(port)}",
            fix=f"end that program, or give another port: {other}",
        )


def is_free(port: int) -> bool:
    """Return whether a server may listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Return the process that listens on a port, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS answers root only
        return "another program"
    for each in connections:
        if each.pid and each.status == psutil.CONN_LISTEN and each.laddr.port == port:
            return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "another user's program"


def held(address: str) -> str:
    """Return who listens on the port of an address, in words; nothing if it is free."""
    port = int(address.rpartition(":")[2])
    return "" if is_free(port) else f"{port} is held by {holder(port)}"


def prefect_command(address: str) -> list[str]:
    """The command that serves Prefect at an address on this machine."""
    port = address.rpartition(":")[2]
    options = ["--host", "127.0.0.1", "--port", port, "--log-level", "warning"]
    app = ["--app-dir", str(PROJECT), "--factory", "flows.servers.guard:prefect"]
    return [sys.executable, "-m", "uvicorn", *options, *app]


def _refused(error: ValidationError) -> str:
    """Return the wrong setting and its fault; not its value, which may be a key."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)


def _start_all(root: Path, address: Mapping[str, str]) -> None:
    api = f"{address['prefect']}/api"
    own = {"PREFECT_API_URL": api, "SDCORE_MLFLOW_URL": address["mlflow"]} | prefect_client(root)
    spawn, serve = partial(_spawn, root, own), [sys.executable, "-m", "flows.servers.deployments"]
    server = own | prefect_server(root, address["prefect"])
    command = prefect_command(address["prefect"])
    prefect = _spawn(root, server, "prefect", command, root / "prefect")
    follow_if_moved(root)
    mlflow = _spawn(root, own | _mlflow(root), "mlflow", _mlflow_command(address["mlflow"]), root)
    _wait(root, "prefect", address["prefect"], "/api/health", prefect)
    _wait(root, "mlflow", address["mlflow"], "/health", mlflow)
    deployments = spawn("deployments", serve)
    for name in _deployment_names():
        path = f"/api/deployments/name/{name}"
        _wait(root, "deployments", address["prefect"], path, deployments, prefect)


def _deployment_names() -> list[str]:
    """``flow/deployment`` of each entry; Prefect names a flow after its function."""
    entries = yaml.safe_load(DEPLOYMENTS.read_text("utf-8"))["deployments"]
    functions = (entry["entrypoint"].partition(":")[2] for entry in entries)
    flows = (function.replace("_", "-") for function in functions)
    return [f"{flow}/{entry['name']}" for flow, entry in zip(flows, entries, strict=True)]


def _mlflow_command(address: str) -> list[str]:
    port = address.rpartition(":")[2]
    options = ["--host", "127.0.0.1", "--port", port, "--workers", "1", "--app-name", "sdcore"]
    return [sys.executable, "-m", "mlflow", "server", *options]


def _mlflow(root: Path) -> dict[str, str]:
    """Variables that name MLflow's tables and files to its server, which starts in the workspace.

    The tables' address may hold a password, and everybody may read the arguments of a process.
    """
    store = shared_store(root)
    # Relative to the workspace: SQLAlchemy's addresses end at `?`, and MLflow decodes `%`.
    tables = store.uri if store else "sqlite:///mlflow.db"
    files = (store.artifacts if store else None) or artifacts_uri(root)
    names = ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI")
    return dict.fromkeys(names, tables) | {ARTIFACTS: files}


def _require_database(root: Path) -> None:
    store = shared_store(root)
    if store and store.is_server:
        raise ConfigError(
            "`sdcore up` starts an MLflow server, but the environment names one",
            got=store.shown,
            where=TRACKING,
            fix=f"unset {TRACKING}; or do without `sdcore up`: `sdcore run` logs to that server",
        )


def _spawn(
    root: Path, own: Mapping[str, str], name: str, command: list[str], folder: Path = PROJECT
) -> subprocess.Popen[bytes]:
    mark = {_MARK: _mark(root, name)}
    with (root / "logs" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment(root), **own, **mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            umask=0o077,  # their databases and logs are for the user alone
            start_new_session=True,  # the terminal's Ctrl-C and hang-up are not for them
        )


def _wait(
    root: Path,
    name: str,
    address: str,
    path: str,
    process: subprocess.Popen[bytes],
    server: subprocess.Popen[bytes] | None = None,
) -> None:
    """Wait until a service is there: the server, which is its own process by default, answers."""
    known = (USER, login(root).key)
    if not answers(f"{address}{path}", process, START_SECONDS, known, server=server):
        raise SdcoreError(
            f"the service {name} did not start",
            got="; ".join(filter(None, [f"exit code {process.poll()}", held(address)])),
            expected=f"an answer from {address}{path} within {START_SECONDS} s",
            where=str(root / "logs" / f"{name}.log"),
            fix="the last lines of that log say why",
        )


def _end(running: list[psutil.Process]) -> None:
    for process in running:
        _signal(process.terminate)
    _, left = psutil.wait_procs(running, timeout=STOP_SECONDS)
    for process in left:
        _signal(process.kill)
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return  # it ended by itself


def _address(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _mark(root: Path, name: str) -> str:
    return f"{name} of {root}"
