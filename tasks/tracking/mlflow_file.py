"""The SQLite file that MLflow keeps its tables in, where MLflow itself offers no call."""

import sqlite3
from contextlib import closing
from pathlib import Path

_ARTIFACT_ADDRESSES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"), ("model_versions", "source"),
    ("model_versions", "storage_location"),
)  # fmt: skip


def pragma(database: Path, statement: str) -> None:
    """Run a PRAGMA on the file."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA {statement}")


def follow_move(database: Path, artifacts: str) -> None:
    """MLflow stores absolute artifact addresses: correct them if the workspace was moved."""
    with closing(sqlite3.connect(database)) as connection, connection:
        stored = connection.execute(
            "SELECT DISTINCT artifact_location FROM experiments "
            "WHERE artifact_location LIKE '%/mlflow-artifacts' AND artifact_location <> ?",
            [artifacts],
        ).fetchall()
        for (old,) in stored:
            for table, column in _ARTIFACT_ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, length(?) + 1) "  # noqa: S608
                    f"WHERE substr({column}, 1, length(?)) = ?",
                    [artifacts, old, old, old],
                )
