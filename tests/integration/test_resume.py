import torch

from sdcore.config import load_experiment
from sdcore.models.policies import save_tensors, weights_digest
from sdcore.store.schema import TABLES
from tasks.distill import finished_rounds
from tasks.run.lineage import Lineage
from tests.helpers.paths import QUICKSTART


def lineage(root, *policies: tuple[int, str]) -> Lineage:
    """One whose rounds have stored policies: number and digest of each."""
    made = Lineage(load_experiment(QUICKSTART, ["training.rounds=4"]), root, "grpo", 0)
    rows = [
        made.columns
        | {
            "policy_id": made.key(round_, digest), "parent_id": None, "round": round_,
            "step": round_, "kind": "full", "path": None, "sha256": digest,
        }
        for round_, digest in policies
    ]  # fmt: skip
    made.store.append_missing(policies=TABLES["policies"].frame(rows))
    return made


def save(made: Lineage, round_: int) -> str:
    made.checkpoint(round_).mkdir(parents=True)
    save_tensors({"w": torch.tensor(float(round_))}, made.checkpoint(round_) / "model.safetensors")
    return weights_digest(made.checkpoint(round_))


def test_a_run_resumes_from_the_last_round_whose_weights_are_there(tmp_path):
    assert finished_rounds(lineage(tmp_path / "new")) == 0
    assert finished_rounds(lineage(tmp_path / "gone", (1, "a"), (2, "b"))) == 0
    assert finished_rounds(lineage(tmp_path / "done", (1, "a"), (4, "d"))) == 4
    digest = save(lineage(tmp_path / "some"), 2)
    assert finished_rounds(lineage(tmp_path / "some", (1, "a"), (2, digest), (3, "c"))) == 2


def test_other_weights_than_the_stored_ones_are_not_resumed_from(tmp_path):
    """Such as those of a stage that was redone since, in rounds that get no checkpoint now."""
    made = lineage(tmp_path)
    first, _ = save(made, 1), save(made, 3)
    assert finished_rounds(lineage(tmp_path, (1, first), (2, "b"), (3, "others"))) == 1
