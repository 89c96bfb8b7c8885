"""Servers and databases that the environment names, instead of those that a workspace has itself.

A command says at its start which of these variables it follows: one that is set by chance must not
lead it elsewhere unseen.
"""

import os
from pathlib import Path

from flows.servers.standing import PREFECT_TABLES, addresses
from sdcore.keys import without_login
from tasks.tracking.stores import ARTIFACTS, TRACKING, shared_store

API = "PREFECT_API_URL"


def named(root: Path, *, up: bool = False) -> dict[str, str]:
    """Return a line for each variable that a run in the workspace follows, by the variable's name.

    No line shows a login.

    Args:
        root: the workspace's folder.
        up: for `sdcore up` instead, which starts a Prefect server whatever `PREFECT_API_URL` says.

    Raises:
        ConfigError: MLflow's variables cannot be followed, see `shared_store`.
    """
    lines = {}
    if store := shared_store(root):
        files = f", files in {without_login(store.artifacts)}" if store.artifacts else ""
        both = f"{TRACKING}, {ARTIFACTS}" if store.artifacts else TRACKING
        lines[TRACKING] = f"MLflow: {store.shown}{files} ({both})"
    api = os.environ.get(API)
    if api and not up and api != f"{addresses(root).get('prefect')}/api":
        return lines | {API: f"Prefect: {without_login(api)} ({API})"}
    tables = ((name, os.environ.get(name)) for name in PREFECT_TABLES)
    return lines | {
        name: f"Prefect's tables: {without_login(address)} ({name})"
        for name, address in tables
        if address
    }
