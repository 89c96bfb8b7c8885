"""Files that only their owner may read, whatever the umask."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def private_files() -> Iterator[None]:
    """Create files with mode 0600 and folders with 0700 while the block runs.

    Tables and checkpoints hold what people asked and models answered. The umask belongs to the
    whole process: what other threads create meanwhile is private too.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
