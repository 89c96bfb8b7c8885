"""Rows on their way between machines that share no file system: Parquet files, called parts.

A part holds what one transaction stored: one row, with a column per table whose value is the list
of that table's rows. So it is there as a whole or not at all, and DuckDB reads it too:
``SELECT unnest(rollouts, recursive := true) FROM 'part.parquet'``.

Its name is its number and the digest of its bytes, such as ``000012-4be1….parquet``: half a part is
known by its digest and skipped, and the same part is written under the same name.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import polars as pl

from sdcore.errors import DataError, SdcoreError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES

_REPLACES = "replaces"  # a column beside the tables


@dataclass(frozen=True)
class Part:
    """Rows that one transaction stored.

    Attributes:
        frames: the rows, by table.
        replaces: they take the place of rows with the same keys.
    """

    frames: Mapping[str, pl.DataFrame]
    replaces: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder of any file system that fsspec opens.

    Attributes:
        files: the file system.
        path: of the folder, without a slash at its end.
    """

    files: Any
    path: str

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.files, f"{self.path}/{name}")

    @property
    def parent(self) -> "Folder":
        """The folder around it."""
        return Folder(self.files, self.path.rpartition("/")[0])

    def make(self) -> None:
        """Make it, where the file system has folders."""
        self.files.makedirs(self.path, exist_ok=True)

    def has(self, name: str) -> bool:
        """Return whether the file is in it."""
        return bool(self.files.exists(f"{self.path}/{name}"))

    def names(self) -> list[str]:
        """Names in the folder, in order; none where it does not exist."""
        try:
            found = self.files.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(each).rstrip("/").rpartition("/")[2] for each in found)

    def remove(self) -> None:
        """Remove it with all that it holds, if it exists."""
        if self.files.exists(self.path):
            self.files.rm(self.path, recursive=True)


def open_folder(address: str) -> Folder:
    """Return the folder at an address, such as `s3://bucket/prefix`; it need not exist.

    Raises:
        SdcoreError: the library for this kind of address is not installed, or nobody answers.
    """
    return Folder(*file_system(address))


def file_system(target: str) -> tuple[Any, str]:
    """Return the file system of a folder or address, which answers, and the path in it.

    Raises:
        SdcoreError: the library for this kind of address is not installed, or nobody answers.
    """
    try:
        # Others write there too: a listing is never kept.
        files, root = fsspec.url_to_fs(target, use_listings_cache=False)
        files.exists(root)
    except (ImportError, ValueError, OSError) as error:
        install = "pip install the package that it names, 'sdcore[s3]' for s3://"
        fix = install if isinstance(error, ImportError) else ""
        raise SdcoreError(
            "this address cannot be reached", got=error, where=target, fix=fix
        ) from error
    return files, root.rstrip("/")


def write(folder: Folder, part: Part, number: int) -> str:
    """Write a part into a folder that exists; it gets its name when it is whole.

    Args:
        folder: with the parts of one writer.
        part: with at least one row.
        number: its place in the order in which the writer's parts are merged.

    Returns:
        Its name.
    """
    data = packed(part)
    name = f"{number:06d}-{_digest(data)}.parquet"
    files, unfinished = folder.files, f"{folder.path}/.{name}"
    files.pipe_file(unfinished, data)
    files.mv(unfinished, f"{folder.path}/{name}")
    return name


def names(folder: Folder) -> list[str]:
    """Return the names of a folder's parts, in the order in which they are to be merged."""
    return [name for name in folder.names() if name.endswith(".parquet") and name[0].isdigit()]


def read(folder: Folder, name: str) -> Part | None:
    """Read a part; None if it is not whole, or no longer there.

    Raises:
        DataError: it has other tables or columns than this version of sdcore.
    """
    try:
        data = folder.files.cat_file(f"{folder.path}/{name}")
    except FileNotFoundError:
        return None
    if name != f"{name[:6]}-{_digest(data)}.parquet":
        return None
    return unpacked(data, f"{folder.path}/{name}")


def packed(part: Part) -> bytes:
    """Return a part as a Parquet file; tables without rows are left out."""
    tables = {
        name: [TABLES[name].checked(frame).to_struct(name)]
        for name, frame in part.frames.items()
        if len(frame)
    }
    target = io.BytesIO()
    pl.DataFrame({_REPLACES: [part.replaces], **tables}).write_parquet(target)
    return target.getvalue()


def unpacked(data: bytes, where: str) -> Part:
    """Return the part in a Parquet file.

    Raises:
        DataError: it has other tables or columns than this version of sdcore.
    """
    row = pl.read_parquet(io.BytesIO(data))
    tables = [name for name in row.columns if name != _REPLACES]
    if unknown := set(tables) - TABLES.keys():
        raise DataError("a part has unknown tables", got=sorted(unknown), where=where)
    frames = {name: row[name].explode().struct.unnest() for name in tables}
    checked = {name: TABLES[name].checked(frame) for name, frame in frames.items()}
    return Part(checked, bool(row[_REPLACES].item()))


def merge(store: Store, part: Part, owner: Mapping[str, object], where: str = "") -> None:
    """Store a part's rows that are not there yet; merged twice, it changes nothing.

    Args:
        store: where they go.
        part: the rows.
        owner: values that the columns of these names must have, such as the experiment's id.
        where: the part is from, for the error.

    Raises:
        DataError: a row is of another experiment, condition or seed. Nothing is stored then.
    """
    for name, frame in part.frames.items():
        for column in owner.keys() & set(frame.columns):
            if foreign := set(frame[column]) - {owner[column]}:
                raise DataError(
                    "a part has rows of another run",
                    got=f"{name}.{column} = {', '.join(sorted(map(str, foreign)))}",
                    expected=owner[column],
                    where=where,
                    fix="remove it from there, and give each workspace a root of its own",
                )
    if part.replaces:
        store.replace(**dict(_changed(store, part)))
    else:
        store.append_missing(**part.frames)


def _changed(store: Store, part: Part) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of a part that are not stored as they are."""
    for name, frame in part.frames.items():
        keys = {column: frame[column].to_list() for column in TABLES[name].key}
        stored = store.rows(name, **keys)
        changed = frame.join(stored, on=frame.columns, how="anti", nulls_equal=True)
        if len(changed):
            yield name, changed


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
