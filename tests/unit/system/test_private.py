import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sdcore.models import sealed
from sdcore.system.holders import described, lock_holder
from sdcore.system.private import private_files


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_made_in_the_block_are_their_owners_alone(tmp_path):
    with pytest.raises(KeyError), private_files():
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        raise KeyError
    (tmp_path / "later").touch()
    assert [mode(tmp_path / name) for name in ("folder", "file", "later")] == [0o700, 0o600, 0o666]


def test_checkpoints_are_their_owners_alone(tmp_path):
    folder = tmp_path / "checkpoints" / "round-1"
    with sealed.replacing(folder) as fresh:
        (fresh / "weights").touch()
        (fresh / "trainer").mkdir()
    assert mode(folder.parent) == mode(folder) == mode(folder / "trainer") == 0o700
    assert mode(folder / "weights") == mode(folder / sealed.CHECKSUMS) == 0o600


def test_who_has_locked_a_file_is_named(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    assert lock_holder(path) is None and lock_holder(tmp_path / "none") is None
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(path)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        holder.stdout.readline()
        assert lock_holder(path) == holder.pid
        assert described(holder.pid).endswith(f"(pid {holder.pid})")
    finally:
        holder.communicate()


def test_a_process_that_cannot_be_seen_is_another_process():
    assert described(None) == described(0) == "another process"
    assert described(2**22 + 7, "notebook") == f"notebook (pid {2**22 + 7})"
