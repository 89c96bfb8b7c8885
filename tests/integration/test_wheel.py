"""The wheel alone: installed outside the checkout, it has all that the first commands need."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import sdcore
from flows.servers import standing
from sdcore.system.ports import free_port
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow
TINY = [
    "problems.train=8", "problems.validation=4", "problems.test=4", "training.rounds=1",
    "training.questions_per_round=4", "evaluation.every=1", "evaluation.samples=2",
    "evaluation.validation_samples=1", "evaluation.resamples=100", "sampling.batch_size=8",
    "conditions.grpo.group_size=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files beside the sources."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("sdcore", "tasks", "flows", "deployments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(target)!r}))"
    run = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=True
    )
    return target / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel and, by a path file, the libraries of this one.

    Path files of the other environment are not read, so that the checkout is not in it.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel]
    subprocess.run(pip, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.fixture(scope="module")
def call(environment, tmp_path_factory):
    """Runs `sdcore` of the wheel in a folder and a home of its own, with no settings around."""
    home = tmp_path_factory.mktemp("home")
    outside = ("PYTHONPATH", "PREFECT_", "SDCORE_", "MLFLOW_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}

    def call(*arguments: object) -> str:
        run = subprocess.run(
            [environment / "bin" / "sdcore", *map(str, arguments)],
            cwd=home, env=clean | {"HOME": str(home)}, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout

    call.home = home
    return call


@pytest.fixture(scope="module")
def finished(call):
    """The workspace's folder, after a first run."""
    call("run", "quickstart", "--quick", *TINY)
    return call.home / "runs"


def test_it_is_the_wheel_that_runs(environment):
    code = "import sdcore, flows, tasks; print(sdcore.__file__, flows.__file__, tasks.__file__)"
    run = subprocess.run([environment / "bin" / "python", "-Ic", code], capture_output=True)
    places = run.stdout.decode().split()
    assert len(places) == 3 and all(Path(each).is_relative_to(environment) for each in places)


def test_version(call):
    assert call("--version") == f"sdcore {sdcore.__version__}\n"


def test_init_writes_an_experiment_that_is_valid(call):
    call("init", "my.toml")
    settings = json.loads(call("run", "my.toml", "--dry-run"))
    assert settings["name"] == "my" and settings["conditions"].keys() >= {"grpo", "reference"}


def test_the_quickstart_runs_to_its_report(finished, call):
    (run,) = json.loads(call("list", "--json"))
    assert run["compared"] and run["rollouts"] > 0
    assert (finished / "reports" / f"{run['experiment_id']}.html").stat().st_size > 10_000


@pytest.mark.night
def test_other_settings_right_after_it_run_too(finished, call):
    call("run", "quickstart", "--quick", *TINY, "training.rounds=2")
    assert len(json.loads(call("list", "--json"))) == 2


@pytest.mark.parametrize(
    "command", [["rescore", "quickstart"], ["promote", "quickstart", "reference/0"]]
)
def test_commands_on_a_finished_run_leave_the_home_folder_alone(finished, call, command):
    call(*command)
    assert not (call.home / ".prefect").exists() and (finished / "prefect").exists()


@pytest.mark.night
def test_up_serves_the_shipped_deployments(call):
    ports = {"prefect": free_port(), "mlflow": free_port()}
    options = [text for name, port in ports.items() for text in (f"--{name}-port", port)]
    try:
        call("up", *options)  # ends when each deployment of prefect.yaml is served
        services = json.loads(call("status", "--json"))
        assert all(services[name]["processes"] for name in standing.NAMES)
    finally:
        call("down")
    assert not (call.home / ".prefect").exists()
