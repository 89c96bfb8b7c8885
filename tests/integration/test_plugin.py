"""A package from outside with one entry of each kind: found by name, run, and hashed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from sdcore.store.database import Store
from tests.helpers.paths import ROOT
from tests.helpers.runs import SDCORE

PLUGIN = ROOT / "tests" / "helpers" / "plugin"
ENTRIES = {
    "context": "hint", "objective": "Squared", "engine": "Careful", "critic": "Stubborn",
    "source": "sums", "grader": "near", "weighting": "fading",
}  # fmt: skip
FILE = """
name = "own"
grader = "{grader}"

[model]
name = "builtin:tiny-solver"

[problems]
source = "{source}"
options = {{ word = "Please:" }}
train = 6
validation = 2
test = 2

[sampling]
max_new_tokens = 96

[engine]
kind = "{engine}"
options = {{ limit = 64 }}

[critic]
kind = "{critic}"

[training]
rounds = 2
questions_per_round = 3

[evaluation]
samples = 2
validation_samples = 2
resamples = 200

[conditions.own]
objective = "{objective}"
context = "{context}"
learning_rate = 1e-4
group_size = 2
tokens = {{ kind = "{weighting}", after = 0.25 }}

[conditions.grpo]
objective = "grpo"
learning_rate = 1e-4
group_size = 2
"""
PATHS = {kind: f"own_plugin.{kind}:{name}" for kind, name in ENTRIES.items()}
INSTALLED = {kind: f"own-{kind}" for kind in ENTRIES}


@pytest.fixture
def folder(tmp_path):
    """An experiment's folder with the package beside the file, and the package as installed."""
    shutil.copytree(PLUGIN, tmp_path / "file" / "own_plugin")
    site = tmp_path / "site"
    shutil.copytree(PLUGIN, site / "own_plugin")
    info = site / "own_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plugin\nVersion: 1.0\n")
    points = [f"[sdcore.{kind}s]\n{INSTALLED[kind]} = {PATHS[kind]}\n" for kind in ENTRIES]
    (info / "entry_points.txt").write_text("\n".join(points))
    return tmp_path


def call(folder: Path, *command: object, site: bool = True) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), *([str(folder / "site")] if site else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    run = [*map(str, command)]
    return subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)


def resolved(folder: Path, names: dict[str, str], *, site: bool) -> dict[str, object]:
    """The settings of the experiment with entries of these names, and its fingerprint."""
    file = folder / "file" / "own.toml"
    file.write_text(FILE.format(**names))
    code = (
        "import json, sys; from pathlib import Path; from sdcore.config import load_experiment; "
        "e = load_experiment(Path(sys.argv[1])); "
        "print(json.dumps(e.model_dump(mode='json') | {'fingerprint': e.fingerprint}))"
    )
    found = call(folder, sys.executable, "-c", code, file, site=site)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize(("names", "site"), [(PATHS, False), (INSTALLED, True)])
def test_one_of_each_kind_is_found_by_name_and_hashed_by_its_source(folder, names, site):
    settings = resolved(folder, names, site=site)
    assert sorted(settings["plugins"]) == sorted(f"{kind} {name}" for kind, name in names.items())
    assert settings["problems"]["options"] == {"count": 60, "word": "Please:"}  # complete
    assert settings["conditions"]["own"]["power"] == 2.0
    assert settings["conditions"]["own"]["tokens"] == {"kind": names["weighting"], "after": 0.25}
    assert settings["critic"]["step"] == "see the reference"
    package = folder / ("site" if site else "file") / "own_plugin"
    for kind in ENTRIES:
        with (package / f"{kind}.py").open("a") as file:
            file.write("\n# changed\n")
    changed = resolved(folder, names, site=site)
    assert changed["plugins"].keys() == settings["plugins"].keys()
    assert not {*changed["plugins"].values()} & {*settings["plugins"].values()}
    assert changed["fingerprint"] != settings["fingerprint"]


def test_an_experiment_with_one_of_each_kind_runs_to_its_end(folder):
    installed = ("engine", "critic", "source", "weighting")
    names = PATHS | {kind: INSTALLED[kind] for kind in installed}
    settings = resolved(folder, names, site=True)
    root = folder / "runs"
    file = folder / "file" / "own.toml"
    ran = call(folder, SDCORE, "run", file, "--workspace", root, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["summary"]
    assert "imported\n" in ran.stderr and "graded" in ran.stderr  # what the grader prints
    store = Store(root / "sdcore.duckdb")
    (stored,) = store.rows("experiments").to_dicts()
    assert stored["fingerprint"] == settings["fingerprint"]
    assert json.loads(stored["config"])["plugins"] == settings["plugins"]
    rollouts = store.rows("rollouts")
    assert rollouts["response_ids"].list.len().max() <= 64  # the engine's own limit
    assert (rollouts["correct"] == (rollouts["reward"] == 1)).all()
    assert rollouts["reward"].is_between(0, 1).all() and rollouts["reward"].n_unique() > 2
    assert all(json.loads(text)["words"] for text in rollouts["grade_details"])
    assert store.rows("problems")["question"].str.starts_with("Please:").all()
    assert store.rows("critiques")["critic"].unique().to_list() == ["stubborn"]
    contexts = store.rows("contexts")
    assert contexts["context"].unique().to_list() == [PATHS["context"]]
    assert contexts["text"].str.contains("A correct solution: <step_1>see the reference").all()
    signals = store.rows("token_signals")
    assert set(signals["context"]) == {PATHS["context"], "grpo"}
    # The critic calls every first step wrong, so that the later ones are after the error.
    wrong = rollouts.filter(~pl.col("correct"))["rollout_id"].implode()
    own = signals.filter(pl.col("rollout_id").is_in(wrong), condition="own", region="after")
    assert own["weight"].to_list() == [0.25 * (kl > 0) for kl in own["kl"]] and len(own)
    assert set(signals.filter(condition="grpo")["weight"]) == {1.0}
    updates = store.rows("updates", condition="grpo").sort("round")
    trained = rollouts.filter(condition="grpo", purpose="train").sort("round")
    rewards = [part["reward"].mean() for part in trained.partition_by("round")]
    assert updates["mean_reward"].to_list() == pytest.approx(rewards)
    again = call(folder, SDCORE, "rescore", "own", "--workspace", root, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["changed"] == 0
