import polars as pl

from sdcore.store.box import box


def wide(rows):
    return pl.DataFrame({f"column_{i}": [f"some text of row {row}" for row in range(rows)]
                         for i in range(19)})  # fmt: skip


def test_columns_that_do_not_fit_are_left_out_and_counted():
    lines = box(wide(2), width=100, rows=40).splitlines()
    assert max(map(len, lines)) <= 100
    assert "column_0" in lines[1] and "column_18" in lines[1] and "column_9" not in lines[1]
    assert "some text of row 1" in "\n".join(lines)  # what is shown is shown in full
    assert "2 rows" in lines[-1] and "19 columns (4 shown)" in lines[-1]


def test_rows_beyond_the_limit_are_left_out_and_counted():
    text = box(pl.DataFrame({"n": range(1000)}), width=80, rows=10)
    assert len(text.splitlines()) <= 20
    assert "1000 rows" in text and "(10 shown)" in text and " 999 " in text


def test_a_small_result_is_shown_as_it_is():
    frame = pl.DataFrame({"name": ["a [bold]b[/]", None], "ids": [[1, 2], []], "n": [1.25, -3.0]})
    text = box(frame, width=80, rows=40)
    assert "a [bold]b[/]" in text and "NULL" in text and "[1, 2]" in text and "1.25" in text
    assert "shown)" not in text


def test_a_result_without_columns_has_no_box():
    assert box(pl.DataFrame(), width=80, rows=40) == ""
