import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_SETTINGS_PATH, temporary_settings

from flows.servers import standing
from sdcore.errors import SdcoreError

ASK = """
from flows.servers.standing import require_settings
from sdcore.errors import SdcoreError
try:
    require_settings()
except SdcoreError as error:
    print(error)
"""


def refused(**environment):
    """What is said about Prefect's settings in a fresh process: they are read once."""
    run = subprocess.run(
        [sys.executable, "-c", ASK], env=os.environ | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stderr == ""
    return run.stdout


def test_settings_that_prefect_refuses_are_named_without_their_values():
    said = refused(PREFECT_LOGGING_LEVEL="swordfish")
    assert "Prefect refuses its settings" in said and "level: Input should be 'DEBUG'" in said
    assert "PREFECT_LOGGING_LEVEL" in said and "swordfish" not in said.lower()


def test_a_damaged_profile_is_named(tmp_path):
    (profiles := tmp_path / "profiles.toml").write_text("damaged")
    said = refused(PREFECT_PROFILES_PATH=str(profiles))
    assert "Expected '='" in said and "PREFECT_PROFILES_PATH" in said


@pytest.mark.parametrize(
    "content",
    ["garbage", "", "[1, 2]", "a: [", "version: $NONESUCH", "$", None, "x" * 300, "[" * 1200],
)  # fmt: skip
def test_a_file_of_loggers_that_prefect_cannot_read_is_named(tmp_path, content):
    path = tmp_path / "loggers.yml"
    if content is None:
        os.mkfifo(path)
    elif content == "x" * 300:
        path = tmp_path / content
    else:
        path.write_text(content)
    refused = pytest.raises(SdcoreError, match="cannot read the file of its loggers")
    with temporary_settings({PREFECT_LOGGING_SETTINGS_PATH: path}), refused as caught:
        standing.require_settings()
    assert caught.value.where == f"PREFECT_LOGGING_SETTINGS_PATH = {path}" and caught.value.fix


def test_loggers_of_another_form_are_named(tmp_path):
    (path := tmp_path / "loggers.yml").write_text("version: 1\nformatters: 5")
    said = refused(PREFECT_LOGGING_SETTINGS_PATH=str(path))
    assert "TypeError" in said and f"PREFECT_LOGGING_SETTINGS_PATH = {path}" in said


def test_stopping_what_was_not_started_writes_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert standing.stop(tmp_path) == 0


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, "<html>hello"), (401, '{"detail": "Unauthorized"}'), (200, "7"), (200, '[{"x": 1}]')],
)  # fmt: skip
def test_a_server_that_is_not_prefects_is_named(tmp_path, status, body):
    from flows.servers.own import _reached

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        api = f"http://me:word@127.0.0.1:{server.server_port}/api"
        refused = pytest.raises(SdcoreError, match="no Prefect server answers")
        with temporary_settings({PREFECT_API_URL: api}), refused as caught:
            _reached(api, tmp_path)
        server.shutdown()
    assert "word" not in str(caught.value) and caught.value.got
    assert caught.value.where == f"PREFECT_API_URL = http://127.0.0.1:{server.server_port}/api"


@pytest.mark.parametrize("address", ["garbage", "http://127.0.0.1:999999/api", "http://[::1"])
def test_an_address_of_prefect_that_is_none_is_named(tmp_path, address):
    from flows.servers.own import _reached

    with pytest.raises(SdcoreError, match="no Prefect server answers") as caught:
        _reached(address, tmp_path)
    assert address in str(caught.value) and "unset" in caught.value.fix
