"""Database files with empty tables, made at install: to make them takes seconds a workspace."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

FOLDER = Path(sys.prefix, "share", "sdcore")


def begin(database: Path, empty: str) -> None:
    """Let a database file that is not there yet begin as one of `FOLDER`, whole or not at all.

    Where that one is missing, or the file system knows no hard links, whoever opens the database
    makes its tables as ever.
    """
    if not (FOLDER / empty).exists() or database.exists():
        return
    with NamedTemporaryFile(dir=database.parent) as whole:
        whole.write((FOLDER / empty).read_bytes())
        whole.flush()
        Path(whole.name).chmod(0o644)  # private otherwise
        with suppress(OSError):  # another process was faster
            os.link(whole.name, database)
