"""What the doctor says of one thing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sdcore.errors import SdcoreError

AGAIN = "see to that, then `sdcore doctor` again"
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `fix` is empty where nothing needs to be done."""

    name: str
    state: State
    found: str
    fix: str = ""


def surviving(name: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a look at something; a look that fails is a finding itself.

    A doctor is asked when things are broken: whatever one look meets, the others must follow.
    """
    try:
        yield from look()
    except SdcoreError as error:
        found = f"{error.what}: {error.got}" if error.got else error.what
        yield Finding(name, "fail", found, error.fix or AGAIN)
    except Exception as error:
        lines = f"{error}".splitlines() or [""]
        found = f"cannot be looked at: {type(error).__name__}: {lines[0]}"
        yield Finding(name, "fail", found, AGAIN)
