"""Losses in chunks of few tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sdcore.training import projection


@contextmanager
def chunks_of(rows: int) -> Iterator[None]:
    """Cut what is scored meanwhile into chunks of so many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "MIN_ROWS", rows)
        patch.setattr(projection, "ELEMENTS", dict.fromkeys(projection.ELEMENTS, 0))
        yield
