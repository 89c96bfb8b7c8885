"""The locks of the dependencies against what pyproject.toml asks for."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCKS = ("requirements.lock", "requirements-torch.lock", "requirements-torch-cpu.lock",
         "requirements-tools.lock")  # fmt: skip


def pins(name):
    """Version and hashes by package; a lock has one requirement and its hashes per paragraph."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE)
    entries = re.findall(r"^([\w.-]+)==(\S+)(.*(?:\n    .*)*)", text, flags=re.MULTILINE)
    return {
        canonicalize_name(package): (version, re.findall(r"--hash=sha256:[0-9a-f]{64}\b", rest))
        for package, version, rest in entries
    }


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_a_hash(name):
    locked = pins(name)
    assert locked and all(hashes for _, hashes in locked.values())


def test_the_locks_have_what_the_project_asks_for():
    locked = pins("requirements.lock") | pins("requirements-torch.lock")
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *extras["dev"]]:
        requirement = Requirement(text)
        version, _ = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text


def test_both_builds_of_torch_are_of_one_version():
    (cpu, _), (torch, _) = (
        pins(name)["torch"] for name in ("requirements-torch-cpu.lock", "requirements-torch.lock")
    )
    assert cpu == f"{torch}+cpu" and "torch" not in pins("requirements.lock")
