import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.servers import standing

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


def test_stopping_what_was_not_started_writes_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert standing.stop(tmp_path) == 0


@pytest.mark.parametrize("address", ["garbage", "http://127.0.0.1:999999/api", "http://[::1"])
def test_an_address_of_prefect_that_is_none_is_named(address):
    from flows.servers.own import _reached
    from sdcore.errors import SdcoreError

    with pytest.raises(SdcoreError, match="no Prefect server answers") as caught:
        _reached(address)
    assert address in str(caught.value) and "unset" in caught.value.fix
