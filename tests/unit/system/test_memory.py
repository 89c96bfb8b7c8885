"""Freed memory goes back to the operating system."""

import numpy as np
import psutil

from sdcore.system.memory import give_back


def test_what_is_freed_between_what_is_in_use_is_given_back():
    """A gigabyte in pieces of 64 KiB, which glibc takes from its heap; a few of them stay."""
    own, size = psutil.Process(), 2**16
    give_back()  # what tests before have left would be used again
    before = own.memory_info().rss
    pieces = [np.ones(size, np.uint8) for _ in range(2**30 // size)]
    stays = pieces[::1000]
    del pieces
    kept = own.memory_info().rss - before
    give_back()
    left = own.memory_info().rss - before
    assert kept > 0.9 * 2**30 and left < 0.1 * 2**30
    assert all(piece.all() for piece in stays)
