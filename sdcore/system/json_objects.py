"""JSON objects of files and servers that are not ours."""

from typing import Any


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate keys, as `object_pairs_hook`: which value is meant cannot be known."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
