"""The command `plan` and the line in front of `run`; nothing is loaded or run."""

import json

import pytest
from typer.testing import CliRunner

from flows.commands import main, plan
from sdcore.config import load_experiment
from sdcore.planning.estimate import duration
from tests.helpers.paths import EXPERIMENTS


def printed(*arguments: str) -> str:
    return CliRunner().invoke(main.app, ["plan", *arguments], catch_exceptions=False).output


def test_a_plan_is_printed():
    lines = printed("quickstart", "--machine", "cpu")
    assert [stage for stage in ("prepare", "sample", "distill", "all") if stage not in lines] == []
    assert "656,896 parameters" in lines and "stated defaults" in lines and "It fits." in lines


def test_a_plan_for_a_cpu_says_what_holes_may_add():
    """1.15 times the activations, 4.83 GiB."""
    on_cpu = " ".join(printed("laptop", "--machine", "cpu").split())
    assert "activations 4.8" in on_cpu and "holes may add up to 5.6 GiB" in on_cpu
    assert "holes" not in printed("laptop", "--machine", "h100x8")


def test_a_plan_as_json_adds_up():
    made = json.loads(printed("laptop", "--machine", "h100x8", "--json"))
    stages = made["stages"].values()
    assert made["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages))
    assert made["device_seconds"] == pytest.approx(8 * made["seconds"])
    assert made["memory"]["total"] < made["machine"]["memory"] and made["fits"]


def test_only_a_long_run_is_announced(capsys):
    plan.announce(load_experiment(EXPERIMENTS / "quickstart.toml", ["model.device=cpu"]))
    assert capsys.readouterr().err == ""
    longer = ["model.device=cpu", "training.rounds=4000"]
    plan.announce(load_experiment(EXPERIMENTS / "quickstart.toml", longer))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Takes about ") and "bound by" in line


def test_a_run_without_an_estimate_goes_on(capsys):
    experiment = load_experiment(EXPERIMENTS / "quickstart.toml", ["model.name=who/knows"])
    plan.announce(experiment)
    assert capsys.readouterr().err.startswith("No estimate of time and memory")


def test_amounts_are_short():
    assert [plan.amount(number) for number in (0, 12, 999, 1234, 8.37e16)] == [
        "0", "12", "999", "1.23 k", "83.7 P",
    ]  # fmt: skip
    assert [duration(number) for number in (7, 433, 43_200)] == ["7 s", "7 min", "12.0 h"]
