"""Database files with empty tables, made at install: to make them takes seconds a workspace.

A newer Prefect or MLflow brings them up to date, as it does with any of its files.
"""

import sys
from contextlib import suppress
from pathlib import Path

FOLDER = Path(sys.prefix, "share", "sdcore")


def begin(database: Path) -> None:
    """Let a database file that is not there yet begin as the one of its name made at install."""
    empty = FOLDER / database.name
    if empty.exists():
        with suppress(FileExistsError), database.open("xb") as file:
            file.write(empty.read_bytes())
