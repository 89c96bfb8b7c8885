"""The login of a workspace's servers: one random key in a file that only its owner may read.

Who has it may start runs and read the secrets of the workspace: it is as good as the account.
"""

import os
import re
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from sdcore.errors import SdcoreError

USER = "sdcore"
HOSTS = ("127.0.0.1", "localhost")  # names of this machine that the servers answer to
PATH = "/sdcore-login"  # of the page at each server that the links of the login page lead to
PAGE = "login.html"
KEY = "login.key"


@dataclass(frozen=True)
class Login:
    """Login of the workspace's servers. Printing it does not show the key."""

    key: str = field(repr=False)

    @property
    def text(self) -> str:
        """`user:key`, as Prefect's settings and its form want it."""
        return f"{USER}:{self.key}"

    @property
    def encoded(self) -> str:
        """The same as HTTP's basic authentication sends it."""
        return b64encode(self.text.encode()).decode()


def new_login() -> Login:
    """Return a login with a new random key of 32 bytes."""
    return Login(secrets.token_urlsafe(32))


def login(root: Path) -> Login:
    """Return the workspace's login, from its file; the first call makes it.

    Raises:
        SdcoreError: the file belongs to somebody else, others may read it, or it holds no key.
    """
    path = root / KEY
    if not path.exists():
        with _draft(path, new_login().key) as draft, suppress(FileExistsError):
            os.link(draft, path)  # whole from the start; the first of two that make it wins
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SdcoreError(
            "others may read the key of the workspace's servers, or made it",
            got=f"mode {status.st_mode & 0o777:o}, user {status.st_uid}",
            expected=f"mode 600, user {os.getuid()}",
            where=str(path),
            fix="`sdcore down`, delete the file, and start again: another key is made",
        )
    key = path.read_bytes().strip()
    if not re.fullmatch(rb"[\w-]{43}", key):
        raise SdcoreError(
            "the key of the workspace's servers is damaged",
            got=f"{len(key)} bytes",
            expected="43 characters",
            where=str(path),
            fix="`sdcore down`, delete the file, and start again: another key is made",
        )
    return Login(key.decode())


def write_page(root: Path, addresses: Mapping[str, str]) -> Path:
    """Write the page whose links log a browser in, for its owner's eyes only.

    It is a file so that the key stands in no printed address, no log and no argument of a process.
    The link to Prefect has it in the fragment, which browsers do not send; the one to MLflow has it
    where browsers take it from for basic authentication.
    """
    known, path = login(root), root / PAGE
    write_private(path, f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<title>sdcore: log in</title>
<style>body {{ font: 16px sans-serif; margin: 3em auto; max-width: 40em }}</style>
<h1>Log in</h1>
<p>The servers of {escape(str(root))}:</p>
<ul>
<li><a href="{addresses["prefect"]}{PATH}#{known.encoded}">Prefect</a>
<li><a href="{link(known, addresses["mlflow"])}">MLflow</a>
</ul>
<p>By hand: Prefect asks for <code>{known.text}</code>,
MLflow for the user <code>{USER}</code> and the password <code>{known.key}</code>.
Anyone with this key can do everything that you can.</p>
</html>
""")  # fmt: skip
    return path


def link(known: Login, address: str) -> str:
    """Return the address that logs a browser in where the guard asks for the key."""
    return f"{address.replace('://', f'://{USER}:{known.key}@')}{PATH}"


def remove_page(root: Path) -> None:
    """Remove the page; the key stays, for the workers and browsers that know it."""
    (root / PAGE).unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; who reads it finds the old text or the new one."""
    with _draft(path, text) as draft:
        draft.replace(path)


@contextmanager
def _draft(path: Path, text: str) -> Iterator[Path]:
    """A private file with a text beside another one, for the block to put into its place."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        yield draft
    finally:
        draft.unlink(missing_ok=True)
