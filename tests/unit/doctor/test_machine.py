"""What the doctor finds on this machine."""

import resource
import socket

import pytest

from flows.doctor import examine, machine
from flows.doctor.findings import Finding, surviving
from sdcore.errors import SdcoreError
from sdcore.system.ports import free_port


def test_a_new_workspace_on_this_machine_is_fine(tmp_path):
    root = tmp_path / "new"
    findings = examine(root, {"prefect": free_port(), "mlflow": free_port()})
    states = {finding.name: finding.state for finding in findings}
    assert states["python"] == states["libraries"] == states["workspace"] == "ok"
    assert not root.exists()


def test_a_port_that_is_taken_gets_a_free_one_as_its_fix(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        (finding,) = machine.ports(tmp_path, {"mlflow": server.getsockname()[1]})
    assert finding.state == "warn" and "--mlflow-port" in finding.fix
    assert int(finding.fix.rpartition(" ")[2]) != server


def test_a_look_that_fails_is_a_finding():
    def broken():
        yield Finding("first", "ok", "seen")
        raise ZeroDivisionError("by zero")

    def refused():
        raise SdcoreError("it is locked", got="key", fix="open it")
        yield

    first, second = surviving("look", broken)
    assert first.state == "ok" and second.state == "fail" and second.fix
    assert second.found == "the check failed: ZeroDivisionError: by zero"
    assert list(surviving("door", refused)) == [
        Finding("door", "fail", "it is locked: key", "open it")
    ]


@pytest.mark.parametrize(
    ("letter", "soft", "hard", "fix"),
    [
        ("v", 4 * 2**30, resource.RLIM_INFINITY, "`ulimit -Sv 16777216`"),
        ("n", 256, 4096, "`ulimit -Sn 1024`"),
        ("f", 2**20, 2**20, "`ulimit -Sf 67108864`; the hard limit is lower"),
        ("t", 60, 3600, "`ulimit -St unlimited`; the hard limit is lower"),
        ("n", 2048, 4096, ""),
        ("v", resource.RLIM_INFINITY, resource.RLIM_INFINITY, ""),
    ],
)
def test_limits_of_the_shell(monkeypatch, letter, soft, hard, fix):
    kind, free = machine.LIMITS[letter][1], (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(resource, "getrlimit", lambda k: (soft, hard) if k == kind else free)
    (finding,) = machine.limits()
    assert finding.fix.startswith(fix) and (finding.state == "ok") == (fix == "")


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [("polars>=2.1,<3", None), ("polars<1", "is not <1"), ("no-such-library>=1", "not installed")],
)
def test_requirements_are_compared_with_what_is_installed(requirement, expected):
    unmet = machine.unmet(machine.Requirement(requirement))
    assert unmet is None if expected is None else expected in unmet


@pytest.mark.parametrize(
    ("packages", "gpus", "found"),
    [
        (True, ["0", "1", "2"], "auto samples with vllm for models in bfloat16: trainer on 0, "
         "vLLM on 1; idle: 2"),
        (True, ["5"], "bfloat16: trainer on 5, vLLM on 5"),
        (True, [], "auto samples with transformers, since there is no GPU"),
        (False, ["0"], "none; engine.kind = auto samples with transformers"),
    ],
)  # fmt: skip
def test_it_says_what_samples_and_on_which_gpu(tmp_path, packages, gpus, found):
    if packages:
        (tmp_path / "lib/python3.11/site-packages/vllm-0.32.0.dist-info").mkdir(parents=True)
    (finding,) = machine.vllm(tmp_path, lambda: gpus)
    assert finding.state == "ok" and finding.found.endswith(found)
    assert bool(finding.fix) is not packages
