"""`sdcore doctor`: what this machine and this workspace have, and the fix for what they lack."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flows.doctor import machine, workspace
from flows.doctor.findings import Finding, surviving

__all__ = ["Finding", "examine"]


def examine(root: Path, ports: Mapping[str, int]) -> list[Finding]:
    """Look at everything; nothing is started, changed or sent anywhere.

    Args:
        root: the workspace's folder, which need not exist.
        ports: those on which `sdcore up` would start its servers, by name.
    """
    looks = machine.looks(root) | workspace.looks(root)
    looks["ports"] = partial(machine.ports, root, ports)
    return [finding for name, look in looks.items() for finding in surviving(name, look)]
