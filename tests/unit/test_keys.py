import base64
import html
import json
import re
import time
from urllib.parse import quote

import polars as pl
import pytest

from sdcore.errors import ConfigError
from sdcore.keys import (
    LOOKS_LIKE_A_KEY,
    Key,
    address_key,
    environment_keys,
    read_key,
    redacted,
    without_login,
)

TEXT = 'sk-A1b2/+"&=C3d4'
KEY = Key(TEXT)
ENCODED = {
    "itself": TEXT,
    "another case": TEXT.lower(),
    "JSON": json.dumps(TEXT)[1:-1],
    "JSON, every character": "".join(f"\\u{ord(c):04X}" for c in TEXT),
    "JSON's slash": TEXT.replace("/", "\\/").replace('"', '\\"'),
    "JSON in JSON": json.dumps(json.dumps("".join(f"\\u{ord(c):04x}" for c in TEXT)))[3:-3],
    "Python": "".join(f"\\x{ord(c):02x}" for c in TEXT),
    "a URL": quote(TEXT, safe=""),
    "a URL, every character": "".join(f"%{ord(c):02x}" for c in TEXT),
    "a URL in a URL": quote(quote(TEXT, safe=""), safe=""),
    "HTML": html.escape(TEXT),
    "HTML, every character": "".join(f"&#{ord(c)};" for c in TEXT),
    "HTML in hex": "".join(f"&#x{ord(c):X};" for c in TEXT),
    "hex": TEXT.encode().hex(),
    "hex in pairs": TEXT.encode().hex(" "),
    "a fingerprint's hex": TEXT.encode().hex(":"),
    "C": "".join(f"\\{ord(c):03o}" for c in TEXT),
    "JavaScript": "".join(f"\\u{{{ord(c):x}}}" for c in TEXT),
    "mail": "".join(f"={ord(c):02X}" for c in TEXT),
    "two lines": f"{TEXT[:7]}\r\n{TEXT[7:]}",
    "two lines in JSON": f"{TEXT[:7]}\\n{TEXT[7:]}".replace('"', '\\"'),
    "invisible spaces": "\u200b".join(TEXT),
    "a mixture": f"%73\\u006b{TEXT[2:]}",
}


@pytest.mark.parametrize("encoded", ENCODED.values(), ids=ENCODED)
def test_a_key_is_cut_out_in_whatever_encoding_it_comes(encoded):
    assert KEY.redact(f"before {encoded} after") == "before [key] after"
    assert pl.Series([f"before {encoded}"]).str.contains(KEY.pattern).all()


@pytest.mark.parametrize("user", ["", "u", "me", "user:", "Bearer "])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_hides_no_key_wherever_it_begins(user, encode):
    encoded = encode(f"{user}{TEXT}:tail".encode()).decode()
    for text in (encoded, quote(encoded, safe=""), json.dumps(encoded).replace("/", "\\/")):
        left = KEY.redact(f"Basic {text}")
        assert "[key]" in left
        # What is left stands for what was around the key, and at most for bits of its ends.
        assert not any(part in left for part in (encoded[8:20], encoded[10:16]))
        assert pl.Series([text]).str.contains(KEY.pattern).all()


def test_base64_in_lines_hides_no_key():
    lines = base64.encodebytes(f"{'user' * 12}:{TEXT}".encode()).decode()  # 76 characters a line
    assert lines.count("\n") == 2 and "[key]" in KEY.redact(lines)


def test_the_pattern_of_a_long_key_is_one_that_polars_takes():
    key = Key("A1-z" * 60)
    assert pl.Series([key.text, key.text[1:]]).str.contains(key.pattern).to_list() == [True, False]


@pytest.mark.parametrize("part", ["\\", "%25", "&amp;", "&#0", "\n", "s", "sk-A1b", "\\n"])
def test_no_text_takes_long(part):
    before = time.process_time()
    KEY.redact(part * 20_000)  # with backslashes, a minute when each was tried with all others
    assert time.process_time() - before < 20


def test_decoded_json_is_redacted_in_depth_and_other_values_stay():
    sent = {"choices": [{"text": f"a {TEXT}", "n": 3, "no": None}], TEXT: [1.5, True]}
    assert redacted(sent, None, KEY) == {
        "choices": [{"text": "a [key]", "n": 3, "no": None}],
        "[key]": [1.5, True],
    }
    assert redacted(sent, None) is sent
    assert redacted("nothing of the kind: sk-A1b2", KEY) == "nothing of the kind: sk-A1b2"


def test_a_key_is_never_printed():
    assert TEXT not in f"{KEY} {KEY!r} {[KEY]}"


@pytest.mark.parametrize("around", ["{}\n", " {}", "{}\r\n", "\t{}\n\n"])
def test_white_space_around_a_key_is_no_part_of_it(around):
    assert read_key(around.format(TEXT), "$KEY") == KEY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sk-secret\nsecret-2", r"U\+000A at position 10 of 18"),
        ("sk-secret\x00", r"U\+0000"),
        ("sk-\x1b[31msecret", r"U\+001B"),
        ("sk secret secret", r"U\+0020 at position 3"),
        ("sk-sécret-secret", r"U\+00E9"),
        ("\ufeffsk-secret-secret", r"U\+FEFF at position 1"),
        ("sk-secret\x7f", r"U\+007F"),
        ("secret\n", "6 characters"),
        (" \n", "0 characters"),
    ],
)
def test_a_text_that_is_no_key_is_refused_without_showing_it(text, said):
    with pytest.raises(ConfigError, match=said) as raised:
        read_key(text, "$CRITIC_KEY")
    assert "$CRITIC_KEY" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "password", "shown"),
    [
        ("postgresql://ada:s3cret@h:5432/d", "s3cret", "postgresql://h:5432/d"),
        ("postgresql+asyncpg://ada:p%40%2F@h/d?sslmode=require", "p@/", "postgresql+asyncpg://h/d"),
        ("postgresql://ada:a/b@h/d", "a/b", "postgresql://h/d"),  # as SQLAlchemy reads it
        ("https://ada:a@b@h/path", "a@b", "https://h/path"),  # as browsers read it
        ("postgresql://h/d?user=ada&password=a%26b", "a&b", "postgresql://h/d"),
        ("https://ada@h/", None, "https://h/"),
        ("https://h/path?x=1", None, "https://h/path"),
        ("s3://bucket/prefix", None, "s3://bucket/prefix"),
        ("/a/folder", None, "/a/folder"),
    ],
)
def test_a_login_is_taken_out_of_an_address(address, password, shown):
    key = address_key(address)
    assert (key.text if key else None) == password
    assert without_login(address) == shown


def test_the_environments_keys_are_those_of_addresses_and_logins_too(monkeypatch):
    monkeypatch.setattr("os.environ", {
        "PGPASSWORD": "of-postgresql", "PREFECT_API_AUTH_STRING": "ada:of-prefect",
        "DATABASE_URL": "postgresql://ada:of-a-database@h/d", "HOME": "/home/of-the-user",
        "MLFLOW_TRACKING_URI": "https://mlflow.example", "SHORT_KEY": "short",
    })  # fmt: skip
    assert {name: key.text for name, key in environment_keys().items()} == {
        "$PGPASSWORD": "of-postgresql",
        "$PREFECT_API_AUTH_STRING": "of-prefect",
        "$DATABASE_URL": "of-a-database",
    }


def test_an_address_with_a_password_looks_like_a_key():
    looks = re.compile(LOOKS_LIKE_A_KEY)
    assert looks.search("it is postgresql://ada:s3cret@h/d")
    assert not looks.search("see https://ada@h:80/ and 12:30@noon")
