"""The place of a workspace's MLflow runs: in the workspace, or where MLFLOW_TRACKING_URI says.

A workspace keeps to the store that its first run was logged to: a variable that is set by chance,
or missing on one of several machines, must not split its runs over two.
"""

import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from sdcore.errors import ConfigError
from sdcore.keys import without_login
from tasks.tracking.mlflow_file import DATABASE

TRACKING, ARTIFACTS = "MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"
NOTE = "tracking.json"
_DATABASES, _SERVERS = ("postgresql", "postgresql+psycopg"), ("http", "https")
_INSTALL = "pip install 'sdcore[cluster]'"


@dataclass(frozen=True)
class SharedStore:
    """An MLflow that other workspaces may use too.

    Attributes:
        uri: its address as MLflow wants it; it may hold a password, so it is never printed.
        artifacts: address under which files of new experiments go; None: the server knows it.
    """

    uri: str = field(repr=False)
    artifacts: str | None

    @property
    def shown(self) -> str:
        """Its address without a login."""
        return without_login(self.uri)

    @property
    def is_server(self) -> bool:
        """Return whether it is an MLflow server; otherwise it is the database of one."""
        return _scheme(self.uri) in _SERVERS


def shared_store(root: Path) -> SharedStore | None:
    """Return the store that MLFLOW_TRACKING_URI names; None is the workspace's own file.

    Raises:
        ConfigError: sdcore does not log to such an address, a library for it is missing, a database
            has no place for files, or the workspace's runs are in another store.
    """
    uri = os.environ.get(TRACKING, "").strip()
    store = SharedStore(uri, _artifacts(uri)) if uri else None
    _require_same(root, store)
    return store


def workspace_id(root: Path, store: SharedStore) -> str:
    """Return the id of a workspace in a shared store; the first call makes it, and keeps the store.

    Two workspaces may run the same experiment, whose id is the same in both.
    """
    path = root / NOTE
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"mlflow": store.shown, "workspace": uuid4().hex}), "utf-8")
        part.replace(path)
    return _note(path)["workspace"]


def _artifacts(uri: str) -> str | None:
    """The address of the folder for files, of a store at this address."""
    if _scheme(uri) in _SERVERS:
        return None
    if _scheme(uri) not in _DATABASES:
        raise ConfigError(
            "sdcore does not log to such an MLflow",
            got=without_login(uri),
            expected="postgresql://HOST/DATABASE, or the http(s):// of an MLflow server",
            where=TRACKING,
            fix=f"unset {TRACKING}: then MLflow's tables are in the workspace",
        )
    given = os.environ.get(ARTIFACTS, "").strip()
    if not ("://" in given or given.startswith("/")):
        raise ConfigError(
            "MLflow's tables are in a database, but no place is given for its files",
            got=given or "nothing",
            expected="s3://BUCKET/PREFIX, or a folder that all machines share, from /",
            where=ARTIFACTS,
            fix=f"set {ARTIFACTS}; or unset {TRACKING}: then all of it is in the workspace",
        )
    _require_library("psycopg", TRACKING)
    if given.startswith("s3://"):
        _require_library("boto3", ARTIFACTS)
    return given if "://" in given else Path(given).as_uri()


def _require_library(name: str, variable: str) -> None:
    if find_spec(name) is None:
        raise ConfigError(f"{name} is not installed", where=f"for {variable}", fix=_INSTALL)


def _require_same(root: Path, store: SharedStore | None) -> None:
    """Refuse a store other than the one that the workspace's runs are in."""
    path, own = root / NOTE, root / DATABASE
    given = f"{TRACKING} = {store.shown}" if store else f"{TRACKING} is not set"
    if own.exists() and store is not None:
        raise ConfigError(
            "the workspace's runs are logged to its own file",
            got=given,
            where=str(own),
            fix=f"unset {TRACKING}, or name another folder with --workspace. To move the runs, "
            "rename the file: a run that is given again is logged again",
        )
    if not path.exists():
        return
    expected = _note(path)["mlflow"]
    if store is None or store.shown != expected:
        raise ConfigError(
            "the workspace's runs are logged elsewhere",
            got=given,
            expected=f"{TRACKING} = {expected}, with its login",
            where=str(path),
            fix=f"set {TRACKING} as expected, or name another folder with --workspace. To move the "
            "runs, delete the file: a run that is given again is logged again",
        )


def _note(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_text("utf-8"))
        return {name: str(stored[name]) for name in ("mlflow", "workspace")}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            "the note of the workspace's MLflow cannot be read",
            got=error,
            where=str(path),
            fix="delete it: a run that is given again is logged again",
        ) from error


def _scheme(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else ""
