"""Conditions and seeds are added to a finished run: nothing is done twice, and all are compared."""

import polars as pl
import pytest

from tests.helpers.runs import metrics, sdcore, tables

FILE = """
name = "extended"
seeds = [0]
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 4, validation = 2, test = 2 }
sampling = { max_new_tokens = 48, batch_size = 64 }
training = { rounds = 2, questions_per_round = 2 }
evaluation = { every = 1, samples = 1, validation_samples = 1, resamples = 100 }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.reference]
objective = "distill"
context = "reference"
learning_rate = 1e-5
"""
MORE = """
[conditions.step_aligned]
objective = "distill"
context = "step_aligned"
learning_rate = 2e-5
"""
SAME = (
    "condition", "seed", "round", "problem_id", "sample_index", "split", "baseline", "metric",
    "budget",
)  # fmt: skip


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory):
    """A run that was extended, with its tables before; and one that had everything at its start."""
    folder = tmp_path_factory.mktemp("extending")
    file, whole = folder / "extended.toml", folder / "whole" / "extended.toml"
    file.write_text(FILE)
    sdcore("run", file, "--workspace", folder / "runs")
    before = tables(folder / "runs")
    file.write_text(FILE.replace("[0]", "[0, 3]") + MORE)
    refused = sdcore("run", file, "--workspace", folder / "runs", check=False)
    assert refused.returncode == 1 and "--extend` adds step_aligned, seed 3" in refused.stderr
    said = sdcore("run", file, "--extend", "--workspace", folder / "runs").stderr
    assert "added to extended-" in said and "step_aligned, seed 3" in said
    whole.parent.mkdir()
    whole.write_text(file.read_text())
    sdcore("run", whole, "--workspace", folder / "whole")
    return folder / "runs", before, folder / "whole"


def comparable(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    keys = [name for name in SAME if name in frame.columns]
    return frame.select(*keys, *columns).sort(keys)


def test_an_extended_run_ends_as_one_that_had_it_all_at_its_start(workspaces):
    extended, whole = (tables(workspaces[place]) for place in (0, 2))
    assert extended["experiments"].height == 1
    for name, columns in {
        "rollouts": ("text", "correct", "sampling_seed"),
        "updates": ("loss", "grad_norm"),
        "problem_scores": ("avg_at_k",),
        "comparisons": ("difference", "low", "high"),
    }.items():
        found, expected = (comparable(run[name], *columns) for run in (extended, whole))
        assert found.equals(expected) and len(found), name
    assert {*extended["updates"].select("condition", "seed").rows()} == {
        (condition, seed) for condition in ("reference", "step_aligned") for seed in (0, 3)
    }


def test_what_was_there_is_not_done_again(workspaces):
    runs, before, _ = workspaces
    after = tables(runs)
    for name in ("rollouts", "updates", "policies", "scores", "critiques"):
        assert before[name].join(after[name], on=before[name].columns, nulls_equal=True).height == (
            before[name].height
        ), name


@pytest.mark.night
def test_the_file_as_it_was_continues_the_run_and_changes_nothing(workspaces):
    runs = workspaces[0]
    before, logged = tables(runs), metrics(runs)
    file = runs.parent / "extended.toml"
    now = file.read_text()
    file.write_text(FILE)
    sdcore("run", file, "--workspace", runs)
    after = tables(runs)
    assert all(before[name].equals(after[name]) for name in before)
    assert metrics(runs) == logged
    file.write_text(now)
    sdcore("run", file, "--workspace", runs)  # asked once
    assert all(before[name].equals(tables(runs)[name]) for name in before)


def test_the_page_says_what_was_added(workspaces):
    (page,) = (workspaces[0] / "reports").glob("extended-*.html")
    assert "Added after the start</dt><dd>step_aligned, seed 3" in page.read_text("utf-8")
    (page,) = (workspaces[2] / "reports").glob("extended-*.html")
    assert "Added after the start" not in page.read_text("utf-8")
