"""The Prefect server that a run starts for itself; here a process that does nothing."""

import os
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from flows.servers import own, standing
from flows.servers.login import login
from sdcore.errors import SdcoreError
from tests.helpers.servers import recording, sleeping


def test_another_run_starts_its_server_once_this_one_is_ready(tmp_path, monkeypatch):
    """Two that made the database of a new workspace at once would fail."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("PREFECT_API_URL", None)
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    monkeypatch.setattr(standing, "require_settings", lambda: None)
    monkeypatch.setattr(own, "answers", lambda *arguments: True)
    server = SimpleNamespace(
        poll=lambda: None, terminate=lambda: None, wait=lambda timeout: None, pid=1
    )
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: started.append(options["env"]) or server
    )

    def others_may_start():
        with FileLock(tmp_path / "prefect" / "start.lock").acquire(timeout=0):
            return True

    with own.prefect_server(tmp_path) as ready:
        with pytest.raises(Timeout):
            others_may_start()
        assert ready().startswith("http://127.0.0.1:") and others_may_start()
    # Prefect's CRITICAL, for the command's own terminal, would leave the server's log empty.
    assert [each["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] for each in started] == ["WARNING"]


def test_a_run_waits_for_the_start_of_the_services_and_uses_them(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("PREFECT_API_URL", None)
    monkeypatch.setattr(standing, "require_settings", lambda: None)
    monkeypatch.setattr(own, "_deliver", lambda: None)
    code = """
import sys, time
from pathlib import Path
from flows.servers import standing
root = Path(sys.argv[1])
with standing.starting(root, print):
    print(flush=True)
    time.sleep(2)
    standing.write_private(root / "services.json", '{"prefect": 4321}')
time.sleep(60)
"""
    mark = {"SDCORE_SERVICE": f"prefect of {tmp_path}"}
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], env=os.environ | mark, stdout=subprocess.PIPE
    ) as up:
        up.stdout.readline()
        with own.prefect_server(tmp_path):
            assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
        up.kill()
    said = f"(pid {up.pid}) starts or stops servers of this workspace"
    assert said in capfd.readouterr().err


def test_a_stranger_that_has_taken_the_port_is_named_and_gets_no_key(tmp_path, monkeypatch):
    monkeypatch.setattr(standing, "START_SECONDS", 1)
    log, key = tmp_path / "log", login(tmp_path).encoded
    with recording() as (address, received), sleeping() as server:
        with pytest.raises(SdcoreError, match="did not start") as error:
            own._ready(address, server, log, ExitStack())
        assert f"(process {os.getpid()})" in error.value.got
        with pytest.raises(SdcoreError, match="did not start") as error:
            standing._wait(tmp_path, "prefect", address, "/api/health", server)
        assert f"(process {os.getpid()})" in error.value.got
        standing.write_private(tmp_path / "services.json", f'{{"prefect": {address[17:]}}}')
        with (
            sleeping(SDCORE_SERVICE=f"prefect of {tmp_path}"),
            pytest.raises(SdcoreError, match="does not listen") as error,
        ):
            own._reached(f"{address}/api", tmp_path)
        assert f"(process {os.getpid()})" in error.value.got
    assert key not in str(received) and not received


def test_of_two_first_commands_both_read_the_one_key(tmp_path, monkeypatch):
    """The other one writes its key between our look and our own."""
    other, link = {}, os.link

    def later(draft, path):
        monkeypatch.setattr(os, "link", link)
        other["login"] = login(tmp_path)
        link(draft, path)

    monkeypatch.setattr(os, "link", later)
    assert login(tmp_path) == other["login"]
    assert [path.name for path in tmp_path.iterdir()] == ["login.key"]


def test_a_first_command_that_fails_leaves_no_empty_key(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no randomness")

    with monkeypatch.context() as patch:
        patch.setattr("flows.servers.login.new_login", fail)
        with pytest.raises(OSError, match="no randomness"):
            login(tmp_path)
    assert not list(tmp_path.iterdir()) and login(tmp_path) == login(tmp_path)
