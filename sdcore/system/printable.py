"""Make text safe for a terminal: models and data sets may contain escape sequences."""

import unicodedata

# ESC would begin a command to the terminal, CR would overwrite the line, U+009B is ESC and "[" in
# one, and U+202E shows what follows from right to left.
_BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE = _PICTURES | {0x7F: 0x2421} | dict.fromkeys([*range(0x80, 0xA0), *_BIDI], 0xFFFD)


def visible(text: str) -> str:
    """Return a text of the same length in which no character controls a terminal.

    Control characters become their pictures, such as ␛ for ESC; lines and tabs stay. Bytes that
    are no UTF-8 (lone surrogates), which could not be printed, become U+FFFD.
    """
    text = text.translate(_VISIBLE)
    if text.isascii():
        return text
    return "".join("\ufffd" if unicodedata.category(char) == "Cs" else char for char in text)
