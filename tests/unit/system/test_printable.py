import io

import pytest
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from sdcore.system.consoles import PlainConsole
from sdcore.system.printable import visible

# a colour, the clipboard, a title, a bell, a CSI in one character, a line that overwrites itself,
# a word that is shown from right to left, backspaces
HOSTILE = ["\x1b[31m", "\x1b]52;c;aGk=\x07", "\x1b]0;title\x1b\\", "\x07", "\x9b2J", "ok\rno",
           "a\u202eb", "no\b\bok", "\x7f", "\x00", "\x1bPq\x1b\\"]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_visible_text_controls_a_terminal(text):
    shown = visible(text)
    assert len(shown) == len(text) and shown != text
    assert all(char.isprintable() for char in shown)


@pytest.mark.parametrize("text", ["", "plain", "two\nlines\tand a tab", "é π 日本 👍 ½ − \u00a0"])
def test_ordinary_text_is_as_it_was(text):
    assert visible(text) == text


def test_bytes_that_are_no_utf8_can_be_printed():
    assert visible("a\udcffb") == "a\ufffdb"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_console_shows_texts_and_still_draws(text):
    file = io.StringIO()
    console = PlainConsole(file=file, width=60)
    table = Table(text)
    table.add_row(escape(text))
    console.print(text, table, text)
    console.print(f"[bold]error:[/] {escape(text)}", soft_wrap=True)
    with Progress(console=console) as progress:
        progress.advance(progress.add_task(escape(text), total=2))
    with console.status(escape(text)):
        console.print(text, markup=False)
    printed = file.getvalue()
    assert "error:" in printed and not set(printed) & set("\x1b\x07\x08\x7f\x9b\r\u202e\x00")


def test_styles_and_cursor_of_a_terminal_stay_richs_own():
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, color_system="standard")
    console.print("[red]a\x1b[5m[/]", highlight=False)
    assert file.getvalue() == "\x1b[31ma␛[5m\x1b[0m\n"
