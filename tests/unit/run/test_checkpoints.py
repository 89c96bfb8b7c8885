"""Which checkpoints a run needs, and which it goes on from."""

from types import SimpleNamespace

import pytest
import torch

from sdcore.errors import StoreError
from sdcore.models import sealed, weight_files
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.training import checkpoints
from tasks.run.checkpoints import damage, damaged_checkpoints, last_checkpoint, needed
from tasks.run.condition_run import BASE, ConditionRun, StoredPolicy
from tests.helpers.example import EXPERIMENT, policy

RUN = EXPERIMENT.experiment_id
STOP = {"experiment_id": RUN, "condition": "grpo", "seed": 0, "round": 4, "sign": "format",
        "reason": "40%"}  # fmt: skip


def saved(root, condition, round_, path="somewhere"):
    """Write a checkpoint whose weights are the round's number; return its row."""
    row = policy(condition, 0, round_) | {"path": path}
    weights = {"weight": torch.full((3,), float(round_))}
    with sealed.replacing(root / StoredPolicy(**row).checkpoint) as fresh:
        weight_files.save_tensors(weights, fresh / weight_files.FULL_FILE)
        if condition != BASE:
            (fresh / checkpoints.STATE).parent.mkdir()
            weight_files.save_tensors(weights, fresh / checkpoints.STATE)
            (fresh / checkpoints.ABOUT).write_text("{}")
    return row | {"sha256": weight_files.digest(weights)}


@pytest.fixture
def run(tmp_path):
    with Store(tmp_path / "sdcore.duckdb") as store:
        yield ConditionRun(SimpleNamespace(root=tmp_path, store=store), EXPERIMENT, "grpo", 0)


def keep(store, **rows):
    store.append_missing(**{name: TABLES[name].frame(each) for name, each in rows.items()})


def rounds(stored, stops=(), also=()):
    """Rounds of the needed checkpoints, and whether training goes on from each."""
    frame = TABLES["stops"].frame(list(stops))
    wanted = needed([StoredPolicy(**row) for row in stored], frame, also)
    return [(each.round, resumable) for each, resumable in wanted.items()]


def test_the_scored_policies_and_the_last_one_are_needed():
    base = policy("base", 0, 0) | {"kind": "base"}
    stored = [base, *(policy("grpo", 0, n) | {"path": "p" if n % 2 == 0 else None}
                      for n in range(1, 6))]  # fmt: skip
    assert rounds(stored) == [(2, False), (4, False), (5, True)]
    assert rounds(stored, also=[3]) == [(2, False), (3, False), (4, False), (5, True)]
    assert rounds(stored[:3]) == [(2, True)] and rounds(stored[:2]) == [(1, True)]
    assert rounds([base]) == [] == rounds([])


def test_of_a_stopped_run_nothing_after_its_last_good_policy_is_needed():
    stored = [policy("grpo", 0, n) | {"path": "p" if n % 2 == 0 else None} for n in range(1, 6)]
    assert rounds(stored, [STOP | {"good_round": 3}]) == [(2, False), (3, False)]
    assert rounds(stored, [STOP | {"good_round": 2}], also=[4]) == [(2, False)]
    assert rounds(stored, [STOP | {"good_round": 0}]) == []


def test_a_warmed_up_base_is_weights_alone(tmp_path):
    """Nobody resumes its training, and neither that of a policy that was only scored."""
    base, row = saved(tmp_path, "base", 0), saved(tmp_path, "grpo", 0)
    assert damage(tmp_path, StoredPolicy(**base), resumable=True) is None
    trained = StoredPolicy(**row)
    assert damage(tmp_path, trained, resumable=True) is None
    with sealed.replacing(tmp_path / trained.checkpoint) as fresh:
        weight_files.save_tensors({"weight": torch.zeros(3)}, fresh / weight_files.FULL_FILE)
    assert damage(tmp_path, trained, resumable=False) is None
    assert "weights alone" in str(damage(tmp_path, trained, resumable=True))
    other = damage(tmp_path, StoredPolicy(**base | {"sha256": "0" * 64}), resumable=False)
    assert other.expected == "0" * 64 and other.got == base["sha256"]


def test_the_needed_checkpoints_that_are_damaged(run):
    rows = [saved(run.root, "grpo", n) for n in (1, 2, 3)]
    others = [policy("grpo", 1, n) | {"path": "of another seed"} for n in (1, 2)]
    keep(run.store, policies=[rows[2], rows[0] | {"path": None}, rows[1], *others])
    assert damaged_checkpoints(run) == []
    for n in (1, 3, 2):
        (run.checkpoint(n) / weight_files.FULL_FILE).unlink()
    found = damaged_checkpoints(run)
    assert [(each.policy.round, each.policy.seed) for each in found] == [(2, 0), (3, 0)]
    assert all("model.safetensors" in str(each.reason.got) for each in found)
    keep(run.store, stops=[STOP | {"good_round": 2}, STOP | {"good_round": 1, "seed": 1}])
    assert [each.policy.round for each in damaged_checkpoints(run)] == [2]


def test_the_last_whole_checkpoint(run):
    with pytest.raises(StoreError, match="not stored"):
        last_checkpoint(run)
    base = saved(run.root, "base", 0)
    keep(run.store, policies=[base])
    assert last_checkpoint(run).condition == "base"
    keep(run.store, policies=[saved(run.root, "grpo", n) for n in (3, 1, 2)])
    found = [last_checkpoint(run, round_).round for round_ in (None, 3, 2, 1, 0)]
    assert found == [3, 3, 2, 1, 0]
    (run.checkpoint(2) / weight_files.FULL_FILE).write_bytes(b"")
    assert [last_checkpoint(run, round_).round for round_ in (None, 2)] == [3, 1]
