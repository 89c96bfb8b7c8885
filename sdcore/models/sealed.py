"""Folders that are written whole or not at all, and carry the digest of each of their files."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from sdcore.errors import ModelError, listed
from sdcore.system.private import private_files

CHECKSUMS = "checksums.sha256"
"""Digests of a folder's other files, in the format of `sha256sum -c`."""
RESTORE = "`sdcore resume RUN` retrains a checkpoint; restore other files from a copy"


def was_written_here(folder: Path) -> bool:
    """Return whether `replacing` wrote the folder, so that its files have digests."""
    return (folder / CHECKSUMS).exists()


def require_intact(folder: Path, *names: str) -> None:
    """Compare files of a folder that `replacing` wrote with the digests that it wrote beside them.

    Args:
        folder: the folder.
        names: paths of files below it; none means all that it was written with.

    Raises:
        ModelError: names the files that are missing or differ.
    """
    expected = _checksums(folder)
    damaged = [
        name
        for name in names or sorted(expected)
        if _digest_or_none(folder / name) != expected.get(name, "")
    ]
    if damaged:
        raise ModelError(
            "files are not as they were written",
            got=f"missing, unreadable or changed: {listed(damaged)}",
            expected=f"the digests in {CHECKSUMS}",
            where=str(folder),
            fix=RESTORE,
        )


def _digest_or_none(path: Path) -> str | None:
    """`file_digest`, or None for what cannot be read: a damaged disk gives an error too."""
    try:
        return file_digest(path)
    except OSError:
        return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a fresh sibling folder to fill; on success it is synced and takes the folder's place.

    The digests of its files are added in `CHECKSUMS`. A crash at any moment leaves the old folder,
    the new one, or none, but never a part of one. Only the owner can read it.
    """
    with private_files():
        folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with private_files():
            yield fresh
            _write_checksums(fresh)
        with ThreadPoolExecutor() as pool:  # flushes at the same time share the disk's commits
            list(pool.map(_sync, [*fresh.rglob("*"), fresh]))
        if os.path.lexists(folder):
            _remove(folder.rename(f"{fresh}-old"))
        fresh.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:  # where a folder should be, a damaged file system may have anything
        path.unlink()


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")


def remove_files(folder: Path, *names: str) -> None:
    """Remove files of a folder that `replacing` wrote; the folder is intact without them.

    Their digests go first, all at once: after a crash in between there are files too many, which
    `has_file` does not know.

    Raises:
        ModelError: the folder has no checksums.
    """
    left = {path: sha256 for path, sha256 in _checksums(folder).items() if path not in names}
    with private_files():
        fresh = folder / f".{CHECKSUMS}"
        fresh.write_text("".join(f"{sha256}  {path}\n" for path, sha256 in left.items()), "utf-8")
    _sync(fresh)
    fresh.replace(folder / CHECKSUMS)
    for name in names:
        (folder / name).unlink(missing_ok=True)


def has_file(folder: Path, name: str) -> bool:
    """Return whether a folder has a file, and a digest of it."""
    try:
        return (folder / name).is_file() and name in _checksums(folder)
    except ModelError:
        return False


def _checksums(folder: Path) -> dict[str, str]:
    """Digests by path below the folder."""
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        what = "the folder has no checksums" if folder.is_dir() else "no such folder"
        raise ModelError(what, got=error, where=str(folder), fix=RESTORE) from error
    pairs = (line.partition("  ") for line in lines)
    digests = {name: sha256 for sha256, _, name in pairs}
    if not digests:
        raise ModelError("the folder has no checksums", where=str(folder), fix=RESTORE)
    return digests


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
