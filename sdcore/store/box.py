"""Rows in a box that fits the terminal, as DuckDB's own shell prints them."""

from contextlib import redirect_stdout
from io import StringIO

import duckdb
import polars as pl


def box(frame: pl.DataFrame, *, width: int, rows: int) -> str:
    """Return a frame as text of at most `width` characters a line and about `rows` rows.

    Columns and rows in the middle give way to dots; the last line then says how many there are.
    """
    if not frame.width:
        return ""
    text = StringIO()
    with duckdb.connect(":memory:") as connection, redirect_stdout(text):
        connection.from_arrow(frame.to_arrow()).show(max_width=width, max_rows=rows)
    return text.getvalue().rstrip()
