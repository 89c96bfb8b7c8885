"""The machine: Python, libraries, GPU, memory, disk, limits and ports."""

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from flows.doctor.findings import Finding
from flows.servers import standing
from sdcore.planning.placement import described, placed
from sdcore.system import gpus
from sdcore.system.ports import free_port

GIB = 2**30
DISK, MEMORY = 5 * GIB, 2 * GIB  # the quickstart needs a fifth of each
FULL = GIB // 8  # of disk space, below which a run soon fails
INODES = 10_000
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
NVIDIA_SECONDS = 20
# Limits of a shell that end a run: torch alone maps some GiB of address space, a Prefect server has
# a hundred files open, and a database is a file of any size.
LIMITS = {
    "v": ("address space", resource.RLIMIT_AS, 16 * GIB),
    "d": ("data segment", resource.RLIMIT_DATA, 16 * GIB),
    "f": ("file size", resource.RLIMIT_FSIZE, 64 * GIB),
    "n": ("open files", resource.RLIMIT_NOFILE, 1024),
    "u": ("processes and threads of the user", resource.RLIMIT_NPROC, 1024),
    "t": ("processor seconds", resource.RLIMIT_CPU, resource.RLIM_INFINITY),
}


def looks(root: Path) -> dict[str, Callable[[], Iterator[Finding]]]:
    """The looks at the machine, by name; `root` is the workspace's folder."""
    return {
        "python": python,
        "libraries": libraries,
        "gpu": gpu,
        "vllm": partial(vllm, standing.PROJECT / ".venv-vllm", gpus.visible),
        "memory": memory,
        "disk": partial(disk, root),
        "limits": limits,
    }


def python() -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info < (3, 14):
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "fail", found, "make the environment with Python 3.11 to 3.13")


def libraries() -> Iterator[Finding]:
    """The versions that are installed, compared with those that sdcore asks for."""
    required = [Requirement(text) for text in metadata.requires("sdcore") or []]
    wrong = [text for each in required if each.marker is None and (text := unmet(each))]
    if wrong:
        fix = "pip install --require-hashes --no-deps --requirement requirements.lock"
        yield Finding("libraries", "fail", "; ".join(wrong), fix)
        return
    shown = ("torch", "transformers", "prefect", "mlflow", "duckdb")
    yield Finding("libraries", "ok", ", ".join(f"{n} {metadata.version(n)}" for n in shown))


def unmet(requirement: Requirement) -> str | None:
    """Return how the installed version of a library misses a requirement, or None."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return None if fits else f"{requirement.name} {version} is not {requirement.specifier}"


def gpu() -> Iterator[Finding]:
    """The GPUs that the driver names, and whether this torch can use them."""
    if not shutil.which(NVIDIA_SMI[0]):
        yield Finding("gpu", "ok", f"none; {psutil.cpu_count()} processors do the work")
        return
    silent = "the driver does not answer: see nvidia-smi"
    try:
        run = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, check=False, timeout=NVIDIA_SECONDS
        )
    except subprocess.TimeoutExpired:
        yield Finding("gpu", "warn", f"no answer within {NVIDIA_SECONDS} s", silent)
        return
    found = "; ".join(run.stdout.strip().splitlines())
    if run.returncode:
        yield Finding("gpu", "warn", found or f"exit code {run.returncode}", silent)
    elif "+cpu" in metadata.version("torch"):
        yield Finding("gpu", "warn", found, "torch is a CPU build: install one with CUDA")
    else:
        yield Finding("gpu", "ok", found)


def vllm(folder: Path, devices: Callable[[], Sequence[str]]) -> Iterator[Finding]:
    """The environment that `make vllm` makes, and what `engine.kind = "auto"` stands for."""
    packages = sorted(folder.glob("lib/python*/site-packages/vllm*.dist-info"))
    found = packages[0].name.removesuffix(".dist-info") if packages else "none"
    there = tuple(devices())
    if packages and there:
        alone = described([placed(there, 1, 1, critic=False)], there)
        engine = f"vllm for models in bfloat16: {alone}"
    else:
        engine = "transformers" + (", since there is no GPU" if packages else "")
    fix = "" if packages else "`make vllm`, if you want it"
    yield Finding("vllm", "ok", f"{found}; engine.kind = auto samples with {engine}", fix)


def memory() -> Iterator[Finding]:
    """Memory that is free."""
    size = psutil.virtual_memory()
    found = f"{size.available / GIB:.1f} of {size.total / GIB:.1f} GiB free"
    if size.available < MEMORY:
        yield Finding("memory", "warn", found, "end other programs, or make batch_size smaller")
    else:
        yield Finding("memory", "ok", found)


def disk(root: Path) -> Iterator[Finding]:
    """Room for the workspace, and for the copies of the tables that queries read."""
    folders = {
        "disk": (root, "make room, or name a --workspace on a larger disk"),
        "temporary files": (
            Path(tempfile.gettempdir()),
            "make room, or set TMPDIR to a folder on a larger disk",
        ),
    }
    for name, (folder, fix) in folders.items():
        there = next(each for each in (folder, *folder.parents) if each.exists())
        size = os.statvfs(there)
        free, files = size.f_bavail * size.f_frsize, size.f_favail
        found = f"{free / GIB:.1f} GiB free at {there}"
        if size.f_files and files < INODES:  # some file systems have no fixed number
            yield Finding(name, "warn", f"room for only {files} files at {there}", fix)
        elif free < DISK:
            yield Finding(name, "fail" if free < FULL else "warn", found, fix)
        else:
            yield Finding(name, "ok", found)


def limits() -> Iterator[Finding]:
    """The limits of the shell (`ulimit`) that a run may meet."""
    low = []
    for letter, (name, kind, enough) in LIMITS.items():
        soft, hard = resource.getrlimit(kind)
        if soft == resource.RLIM_INFINITY or (enough != resource.RLIM_INFINITY and soft >= enough):
            continue
        wanted = "unlimited" if enough == resource.RLIM_INFINITY else _in_units(letter, enough)
        fix = f"`ulimit -S{letter} {wanted}`"
        if hard != resource.RLIM_INFINITY and (enough == resource.RLIM_INFINITY or hard < enough):
            fix += "; the hard limit is lower, so ask the administrator to raise it"
        low.append(Finding(f"limit of {name}", "warn", f"{soft} (`ulimit -{letter}`)", fix))
    yield from low or [Finding("limits", "ok", "none that a run is likely to meet")]


def _in_units(letter: str, value: int) -> int:
    """Return a limit in the units of bash's `ulimit`: KiB, and for files blocks of 1,024 bytes."""
    return value if letter in "nu" else value // 1024


def ports(root: Path, wanted: Mapping[str, int]) -> Iterator[Finding]:
    """The ports of the servers that `sdcore up` starts."""
    up = standing.addresses(root)
    for name, port in wanted.items():
        if name in up:
            yield Finding(f"{name} port", "ok", f"up at {up[name]}")
        elif standing.is_free(port):
            yield Finding(f"{name} port", "ok", f"{port} is free")
        else:
            found = f"{port} is held by {standing.holder(port)}"
            fix = f"end that program, or take a free one: sdcore up --{name}-port {free_port()}"
            yield Finding(f"{name} port", "warn", found, fix)
