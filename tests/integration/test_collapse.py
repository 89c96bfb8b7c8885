"""A training that collapses, with real parts: it ends early, and so does a resumed one."""

import duckdb
import pytest

from sdcore.models.weight_files import folder_digest
from sdcore.store.schema import TABLES
from tests.helpers.runs import sdcore, tables

pytestmark = pytest.mark.usefixtures("prefect")
COLLAPSING = """
name = "collapsing"
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 8, validation = 4, test = 6 }
sampling = { max_new_tokens = 48, batch_size = 64 }
training = { rounds = 8, questions_per_round = 4, save_every = 8, warmup_steps = 6 }
evaluation = { every = 8, samples = 2, validation_samples = 2, resamples = 200 }
health = { stop_when = ["format", "drift"] }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.reckless]
objective = "distill"
context = "wrong_hint"
learning_rate = 0.005
"""


@pytest.mark.night
def test_a_collapse_ends_a_condition_at_its_last_good_checkpoint_and_a_resumed_run_too(tmp_path):
    file, workspace = tmp_path / "collapsing.toml", tmp_path / "runs"
    file.write_text(COLLAPSING, "utf-8")
    result = sdcore("run", file, "--workspace", workspace)
    assert "WARNING" in result.stderr and "stopped after round" in " ".join(result.stderr.split())
    first = tables(workspace)
    (stop,) = first["stops"].to_dicts()
    # The sign lasted for two rounds, and a policy before them is the last good one.
    assert stop["round"] < 7 and 0 < stop["good_round"] <= stop["round"] - 2
    folders = {folder.name for folder in workspace.glob("checkpoints/*/reckless/seed-0/round-*")}
    assert folders == {f"round-{stop['good_round']:04d}"}
    assert first["updates"]["round"].max() == stop["round"]
    trained = first["scores"].filter(condition="reckless")
    assert set(trained["round"]) == {stop["good_round"]} and len(trained) == 2
    (chosen,) = first["policies"].filter(condition="reckless", round=stop["good_round"]).to_dicts()
    assert folder_digest(workspace / chosen["path"]) == chosen["sha256"]
    assert len(first["comparisons"])
    page = next((workspace / "reports").glob("*.html")).read_text("utf-8")
    assert f"compared up to the policy after {stop['good_round']} rounds" in page
    # Killed after the round's commit, before the decision was stored.
    lost = ("stops", "scores", "problem_scores", "comparisons", "seed_differences")
    with duckdb.connect(workspace / "sdcore.duckdb") as connection:
        for name in lost:
            connection.execute(f"DELETE FROM {name} WHERE condition = 'reckless'")
    sdcore("run", file, "--workspace", workspace)
    again = tables(workspace)
    assert all(again[name].equals(first[name]) for name in TABLES)
