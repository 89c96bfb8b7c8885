"""The SQLite file that MLflow keeps its tables in, where MLflow itself offers no call."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import Timeout

from sdcore.errors import SdcoreError

DATABASE = "mlflow.db"
_SPECIAL = set("?%#")
_HAS_TABLES = "SELECT 1 FROM sqlite_master WHERE name = 'model_versions'"

_ARTIFACT_ADDRESSES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"), ("model_versions", "source"),
    ("model_versions", "storage_location"),
)  # fmt: skip


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Explain what keeps MLflow from starting; `place` is its database, or what reads the settings.

    Raises:
        SdcoreError: a variable of the environment is malformed, or the database is locked, damaged
            or cannot be written.
    """
    try:
        yield
    except SdcoreError:
        raise
    except (sqlite3.Error, Timeout) as error:
        raise SdcoreError(
            "MLflow's database cannot be opened",
            got=error,
            where=place,
            fix="end the process that uses it; `sdcore doctor` says whether it is damaged",
        ) from error
    except ValueError as error:
        given = sorted(name for name in os.environ if name.startswith("MLFLOW_"))
        raise SdcoreError(
            "MLflow refuses its settings",
            got=error,
            where=f"one of {', '.join(given)}",
            fix="correct or unset what you set of these variables",
        ) from error


def pragma(database: Path, statement: str) -> None:
    """Run a PRAGMA on the file."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA {statement}")


def follow_move(root: Path) -> None:
    """Correct the absolute artifact addresses that MLflow stores, if the workspace was moved.

    Nothing is written where they are right, or where the workspace has no MLflow.
    """
    database = root / DATABASE
    if not database.exists():
        return
    artifacts = artifacts_uri(root)
    with closing(sqlite3.connect(database)) as connection, connection:
        if not connection.execute(_HAS_TABLES).fetchone():
            return
        stored = connection.execute(
            "SELECT DISTINCT artifact_location FROM experiments "
            "WHERE artifact_location LIKE '%/mlflow-artifacts' AND artifact_location <> ?",
            [artifacts],
        ).fetchall()
        for (old,) in stored:
            for table, column in _ARTIFACT_ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, length(?) + 1) "  # noqa: S608
                    f"WHERE substr({column}, 1, length(?) + 1) IN (?, ? || '/')",
                    [artifacts, old, old, old, old],
                )


def follow_if_moved(root: Path) -> None:
    """Call `follow_move` where MLflow itself is not needed, such as by a reader of the tables.

    A file that is read-only or damaged is left as it is: who needs MLflow meets the error.
    """
    with suppress(sqlite3.Error):
        follow_move(root)


def artifacts_uri(root: Path) -> str:
    """Address of the workspace's artifacts; one for all spellings of its path, such as by links."""
    return (root.resolve() / "mlflow-artifacts").as_uri()


@contextmanager
def database_uri(root: Path) -> Iterator[str]:
    """Address of the workspace's MLflow tables, for as long as the block runs.

    SQLAlchemy's addresses end at `?`, and MLflow decodes `%`: such a path is reached by a link.
    """
    with ExitStack() as stack:
        folder = root.absolute()
        if _SPECIAL & set(str(folder)):
            scratch = Path(stack.enter_context(TemporaryDirectory()))
            folder = scratch / "workspace"
            folder.symlink_to(root.absolute(), target_is_directory=True)
        yield f"sqlite:///{folder / DATABASE}"
