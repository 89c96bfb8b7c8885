"""Keys of servers: how they are read, and how they are cut out of what a server sends back.

A server that echoes its request must not bring a key into a table, a log or a page. So every text
that a server sends goes through `redacted` where it enters, after it was decoded, and a key is
known only where its server is asked.
"""

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar
from urllib.parse import parse_qs, unquote

from sdcore.errors import ConfigError

CUT = "[key]"  # stands where a key was
SHORTEST = 8  # a shorter text stands in a trace by chance, and would be cut out of it
LOOKS_LIKE_A_KEY = "|".join([
    r"(?i:\bbearer\s+[\w.~+/=-]{16,})",  # Bearer eyJhbGciOiJIUzI1NiJ9
    r"(?i:\bauthorization\W{1,8}basic\s+[\w+/=-]{12,})",  # Authorization: Basic dXNlcjpz
    r"\bsk-[\w-]{20,}",  # OpenAI, Anthropic and many others
    r"\bhf_\w{30,}",  # Hugging Face
    r"\bgh[opsur]_\w{36,}",  # GitHub
    r"\bAKIA[A-Z0-9]{16}\b",  # Amazon
    r"\b\w[\w+.-]*://[^\s:@/]*:[^\s:@/]+@\w",  # postgresql://user:password@host/database
])  # fmt: skip
"""Regular expression, for Python's `re` and for Polars, of texts that are keys by their looks."""

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
# scheme://user:password@place?query. An unescaped password may hold a slash.
_ADDRESS = re.compile(
    r"(?P<scheme>\w[\w+.-]*://)(?:(?P<login>[^/?#]*|[^@?]*:[^@]*)@)?(?P<place>[^?#]*)(?P<query>.*)",
    re.DOTALL,
)
_NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
# Base64 is cut into lines, hex is grouped: "73 6b", "73:6b", "c2st\nQTFi", invisible spaces.
_GAP = r"(?:[ \t\r\n:\u00ad\u200b]|\\{some}[nrt]){{0,3}}"

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """A key for a server. Printing it does not show it.

    Attributes:
        text: what the server expects.
    """

    text: str = field(repr=False)

    @cached_property
    def pattern(self) -> str:
        r"""Regular expression, for Python's `re` and for Polars, of the key in any encoding.

        Covered are, in any mixture and escaped several times over: the text itself, escapes of
        JSON, Python and C (``\u0073``, ``\x73``, ``\163``, ``\/``), of URLs (``%73``), of mail
        (``=73``) and of HTML (``&#115;``); and its bytes in hex and, wherever they begin in it, in
        base64; all of it with line breaks or separators in it too.
        """
        return self._spelt("+", "*")

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        """With bounds: Python tries every length at every place, and many backslashes for hours."""
        return re.compile(self._spelt("{1,15}", "{0,4}"))

    def _spelt(self, some: str, more: str) -> str:
        spellings = dict.fromkeys([self.text, self.text.encode().hex(), *_base64(self.text)])
        gap = _GAP.format(some=some)
        escaped = (gap.join(_escaped(each, some, more) for each in text) for text in spellings)
        return f"(?i:{'|'.join(escaped)})"

    def redact(self, text: str) -> str:
        """Return the text with `[key]` in place of the key, however it is encoded."""
        return text if len(text) < len(self.text) else self._compiled.sub(CUT, text)


def read_key(text: str, where: str) -> Key:
    """Return a key as it is sent: without the white space around it, as a file or a shell leaves.

    Args:
        text: of the variable, the block or the file.
        where: its name, for the error, which never shows the text.

    Raises:
        ConfigError: it is shorter than 8 characters, or has a character that no header may have.
    """
    key = text.strip()
    odd = [index for index, each in enumerate(key) if not "!" <= each <= "~"]
    if odd:
        raise ConfigError(
            "the key has a character that a key cannot have",
            got=f"U+{ord(key[odd[0]]):04X} at position {odd[0] + 1} of {len(key)}",
            expected="visible ASCII characters on one line",
            where=where,
            fix="copy the key again, without quotes, spaces or line breaks inside it",
        )
    if len(key) < SHORTEST:
        raise ConfigError(
            "the key is too short to be kept out of the tables",
            got=f"{len(key)} characters",
            expected=f"at least {SHORTEST}: a shorter text may stand in a trace by chance",
            where=where,
            fix="give the server a longer key; a server that asks for none needs no key here",
        )
    return Key(key)


def environment_keys() -> dict[str, Key]:
    """The keys in the variables of the environment.

    These are the values of variables whose names say that they are secret, the passwords of
    Prefect's `user:password`, and those in addresses, such as a database's.
    """
    keys = {}
    for name, value in os.environ.items():
        text = value.strip()
        if _SECRET.search(name):
            keys[f"${name}"] = Key(text)
        elif name.endswith("AUTH_STRING"):
            keys[f"${name}"] = Key(text.partition(":")[2])
        elif password := address_key(text):
            keys[f"${name}"] = password
    return {name: key for name, key in keys.items() if len(key.text) >= SHORTEST}


def address_key(address: str) -> Key | None:
    """Return the password in an address, which may be its user's or a setting; None without one.

    Examples are `postgresql://user:password@host/database` and
    `postgresql://host/database?user=user&password=password`.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        return None
    password = unquote((parts["login"] or "").partition(":")[2])
    settings = parse_qs(parts["query"].lstrip("?"))
    password = password or "".join(settings.get("password", []))
    return Key(password) if password else None


def without_login(address: str) -> str:
    """Return an address without user, password and settings, to be shown and compared."""
    parts = _ADDRESS.fullmatch(address)
    return f"{parts['scheme']}{parts['place']}" if parts else address


def hub_key() -> Key | None:
    """The token that the Hugging Face hub's library sends; None where there is none."""
    from huggingface_hub import get_token  # noqa: PLC0415 - most processes do not ask the hub

    token = get_token()
    return Key(token) if token else None


def redacted(value: T, *keys: Key | None) -> T:
    """Return what a server sent with `[key]` in place of these keys.

    Args:
        value: text, or decoded JSON: texts inside lists and dictionaries count.
        keys: those that the server was sent; None where it wants none.
    """
    for key in filter(None, keys):
        value = _redacted(value, key)
    return value


def _redacted(value: T, key: Key) -> T:
    if isinstance(value, str):
        return key.redact(value)  # type: ignore[return-value]
    if isinstance(value, list):
        return [_redacted(each, key) for each in value]  # type: ignore[return-value]
    if isinstance(value, dict):
        return {_redacted(k, key): _redacted(v, key) for k, v in value.items()}  # type: ignore[return-value]
    return value


def _escaped(character: str, some: str, more: str) -> str:
    """Regular expression of one character, escaped or not.

    `some` and `more` say how often an escape may be escaped, as quantifiers like + and *.
    """
    code = ord(character)
    digits = f"{code:02x}"
    named = f"|{_NAMED[character]}" if character in _NAMED else ""
    return "|".join([
        f"(?:{re.escape(character)}",  # s
        # \u0073, \\u0073, \u{73}, \x73, \163, \/
        rf"\\{some}(?:u00{digits}|u\{{{digits}\}}|x{digits}|{code:03o}|{re.escape(character)})",
        f"[%=](?:25){more}{digits}",  # %73, %2573, =73
        # &#x73; &#115; &amp;#115; &quot;
        f"&(?:amp;){more}(?:#x0{more}{digits}|#0{more}{code}{named});?)",
    ])  # fmt: skip


def _base64(text: str) -> Iterator[str]:
    """The characters that the text alone decides where base64 encodes it with others around it.

    Base64 reads three bytes at a time, so there are three ways for a text to begin in it:
    "secret" is in "c2VjcmV0", and in "dTpzZWNyZXQ=" (of "u:secret") as "zZWNyZX".
    """
    data = text.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            whole = encode(bytes(before) + data).decode()
            yield whole[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
