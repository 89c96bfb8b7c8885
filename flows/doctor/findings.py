"""Findings of the doctor."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sdcore.errors import SdcoreError

AGAIN = "fix that, then run `sdcore doctor` again"
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check; `fix` is empty if there is nothing to do."""

    name: str
    state: State
    found: str
    fix: str = ""


def surviving(name: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; a check that fails is a finding itself.

    A doctor is asked when things are broken: one check that fails must not stop the others.
    """
    try:
        yield from look()
    except SdcoreError as error:
        found = f"{error.what}: {error.got}" if error.got else error.what
        yield Finding(name, "fail", found, error.fix or AGAIN)
    except Exception as error:
        lines = f"{error}".splitlines() or [""]
        found = f"the check failed: {type(error).__name__}: {lines[0]}"
        yield Finding(name, "fail", found, AGAIN)
