"""The command's help, completion and errors; no run is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows.commands.main import app
from sdcore.system.ports import free_port
from tests.helpers.paths import QUICKSTART

COMMANDS = sorted(typer.main.get_command(app).commands)
SDCORE = Path(sys.executable).with_name("sdcore")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_of_its_command(command):
    text = CliRunner().invoke(app, [command, "--help"]).output
    assert f"Example: sdcore {command}" in text


def test_the_shell_completes_commands():
    asked = {"_SDCORE_COMPLETE": "complete_bash", "COMP_WORDS": "sdcore do", "COMP_CWORD": "1"}
    answer = subprocess.run([SDCORE], env=os.environ | asked, capture_output=True, text=True)
    assert set(answer.stdout.split()) == {"doctor", "down"}


@pytest.mark.parametrize("place", [0, 2])
def test_a_traceback_comes_only_with_debug(tmp_path, place):
    arguments = ["run", "none.toml", "--workspace", str(tmp_path)]
    plain = subprocess.run([SDCORE, *arguments], capture_output=True, text=True)
    assert plain.returncode == 1 and "Traceback" not in plain.stderr
    arguments.insert(place, "--debug")
    debug = subprocess.run([SDCORE, *arguments], capture_output=True, text=True)
    assert debug.returncode == 1 and "Traceback" in debug.stderr


def test_a_prefect_server_that_is_gone_is_named(tmp_path):
    gone = f"http://127.0.0.1:{free_port()}/api"
    command = [SDCORE, "run", QUICKSTART, "--workspace", tmp_path]
    environment = os.environ | {"PREFECT_API_URL": gone}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"PREFECT_API_URL = {gone}" in result.stderr and "unset" in result.stderr
