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
def extended(tmp_path_factory):
    """The workspace of a run that was extended, and its tables before."""
    folder = tmp_path_factory.mktemp("extending")
    file = folder / "extended.toml"
    file.write_text(FILE)
    sdcore("run", file, "--workspace", folder / "runs")
    before = tables(folder / "runs")
    file.write_text(FILE.replace("[0]", "[0, 3]") + MORE)
    refused = sdcore("run", file, "--workspace", folder / "runs", check=False)
    assert refused.returncode == 1 and "--extend` adds step_aligned, seed 3" in refused.stderr
    said = sdcore("run", file, "--extend", "--workers", 2, "--workspace", folder / "runs").stderr
    assert "added to extended-" in said and "step_aligned, seed 3" in said
    return folder / "runs", before


def page(workspace):
    (path,) = (workspace / "reports").glob("extended-*.html")
    return path.read_text("utf-8")


def comparable(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    keys = [name for name in SAME if name in frame.columns]
    return frame.select(*keys, *columns).sort(keys)


@pytest.mark.night
def test_an_extended_run_ends_as_one_that_had_it_all_at_its_start(extended, tmp_path):
    file = tmp_path / "extended.toml"
    file.write_text((extended[0].parent / "extended.toml").read_text())
    sdcore("run", file, "--workspace", tmp_path)
    found, whole = tables(extended[0]), tables(tmp_path)
    assert found["experiments"].height == 1
    for name, columns in {
        "rollouts": ("text", "correct", "sampling_seed"),
        "updates": ("loss", "grad_norm"),
        "problem_scores": ("avg_at_k",),
        "comparisons": ("difference", "low", "high"),
    }.items():
        left, right = (comparable(run[name], *columns) for run in (found, whole))
        assert left.equals(right) and len(left), name
    assert "Added after the start" not in page(tmp_path)


def test_what_is_missing_is_trained_and_what_was_there_is_not_done_again(extended):
    runs, before = extended
    after = tables(runs)
    assert {*after["updates"].select("condition", "seed").rows()} == {
        (condition, seed) for condition in ("reference", "step_aligned") for seed in (0, 3)
    }
    for name in ("rollouts", "updates", "policies", "scores", "critiques"):
        assert before[name].join(after[name], on=before[name].columns, nulls_equal=True).height == (
            before[name].height
        ), name


@pytest.mark.night
def test_the_file_as_it_was_continues_the_run_and_changes_nothing(extended):
    runs = extended[0]
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


def test_the_page_says_what_was_added(extended):
    assert "Added after the start</dt><dd>step_aligned, seed 3" in page(extended[0])
