"""`sdcore doctor`: what this machine and this workspace have, and the fix for what they lack."""

import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from flows.commands.terminal import open_store
from flows.servers import standing
from sdcore.errors import SdcoreError
from sdcore.store.schema import TABLES

GIB = 2**30
DISK, MEMORY = 5 * GIB, 2 * GIB  # the quickstart needs a fifth of each
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `fix` is empty where nothing needs to be done."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(root: Path, ports: Mapping[str, int]) -> list[Finding]:
    """Look at everything; nothing is started, changed or sent anywhere."""
    return [
        _python(),
        _libraries(),
        _gpu(),
        _vllm(standing.PROJECT / ".venv-vllm"),
        _memory(),
        _disk(root),
        *_ports(root, ports),
        *_workspace(root),
    ]


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("python", "ok", found)
    return Finding("python", "fail", found, "make the environment with Python 3.11 or 3.12")


def _libraries() -> Finding:
    asked = [Requirement(text) for text in metadata.requires("sdcore") or []]
    wrong = [text for each in asked if each.marker is None and (text := _unmet(each))]
    if wrong:
        fix = "pip install --requirement requirements.lock"
        return Finding("libraries", "fail", "; ".join(wrong), fix)
    shown = ("torch", "transformers", "prefect", "mlflow", "duckdb")
    return Finding("libraries", "ok", ", ".join(f"{n} {metadata.version(n)}" for n in shown))


def _unmet(requirement: Requirement) -> str | None:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return None if fits else f"{requirement.name} {version} is not {requirement.specifier}"


def _gpu() -> Finding:
    if not shutil.which(NVIDIA_SMI[0]):
        return Finding("gpu", "ok", f"none; {psutil.cpu_count()} processors do the work")
    run = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=False)
    if run.returncode:
        return Finding(
            "gpu", "warn", run.stdout.strip(), "the driver does not answer: see nvidia-smi"
        )
    found = "; ".join(run.stdout.strip().splitlines())
    if "+cpu" in metadata.version("torch"):
        return Finding("gpu", "warn", found, "torch is a CPU build: install one with CUDA")
    return Finding("gpu", "ok", found)


def _vllm(folder: Path) -> Finding:
    packages = sorted(folder.glob("lib/python*/site-packages/vllm*.dist-info"))
    if packages:
        return Finding("vllm", "ok", packages[0].name.removesuffix(".dist-info"))
    return Finding("vllm", "ok", "none; sampling with transformers", "`make vllm`, if you want it")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < MEMORY:
        return Finding("memory", "warn", found, "end other programs, or make batch_size smaller")
    return Finding("memory", "ok", found)


def _disk(root: Path) -> Finding:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free at {there}"
    if free < DISK:
        return Finding("disk", "warn", found, "make room, or name a --workspace on a larger disk")
    return Finding("disk", "ok", found)


def _ports(root: Path, ports: Mapping[str, int]) -> Iterator[Finding]:
    up = standing.addresses(root)
    for name, port in ports.items():
        if name in up:
            yield Finding(f"{name} port", "ok", f"up at {up[name]}")
        elif standing.is_free(port):
            yield Finding(f"{name} port", "ok", f"{port} is free")
        else:
            found = f"{port} is held by {standing.holder(port)}"
            yield Finding(f"{name} port", "warn", found, f"sdcore up --{name}-port N")


def _workspace(root: Path) -> Iterator[Finding]:
    yield _services(root)
    if not root.exists():
        yield Finding("workspace", "ok", f"{root} is new", "`sdcore run` or `sdcore up` fills it")
        return
    yield _tables(root)
    yield _mlflow(root / "mlflow.db")


def _services(root: Path) -> Finding:
    running = {name: len(standing.processes(root, name)) for name in standing.NAMES}
    missing = [name for name, count in running.items() if not count]
    if standing.was_started(root) and missing:
        found = f"started, but gone: {', '.join(missing)}"
        return Finding("services", "warn", found, "`sdcore down`, then `sdcore up`")
    return Finding("services", "ok", "down" if missing else "up")


def _tables(root: Path) -> Finding:
    try:
        store = open_store(root)
        counts = {name: len(store.query(f"SELECT 1 FROM {name}")) for name in TABLES}  # noqa: S608
    except SdcoreError as error:
        return Finding("tables", "warn", error.what, error.fix)
    return Finding("tables", "ok", ", ".join(f"{n} {name}" for name, n in counts.items() if n))


def _mlflow(path: Path) -> Finding:
    if not path.exists():
        return Finding("mlflow", "ok", "no runs yet")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        (answer,) = connection.execute("PRAGMA quick_check").fetchone()
        (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    if answer != "ok":
        return Finding(
            "mlflow", "fail", answer, "restore mlflow.db from a copy; DuckDB has its numbers"
        )
    return Finding("mlflow", "ok", f"{runs} runs")
