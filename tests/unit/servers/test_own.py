"""The Prefect server that a run starts for itself; here a process that does nothing."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from flows.servers import own, standing


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
