"""Checkpoints that are missing or damaged are retrained on the stored rollouts."""

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from sdcore.config import load_experiment
from sdcore.errors import StoreError
from sdcore.models import policies
from sdcore.schedule import Stage
from tasks.align import align
from tasks.distill import distill
from tasks.maintenance.restore import require_replaceable, restore
from tasks.prepare import prepare
from tasks.run.checkpoints import damaged_checkpoints, last_checkpoint
from tasks.run.condition_run import ConditionRun, base_run
from tasks.run.rounds import first_round
from tasks.run.session import Session
from tasks.sample import sample
from tests.helpers.paths import QUICKSTART
from tests.helpers.tiny import flip

SETTINGS = [
    "seeds=[3]", "problems.train=4", "problems.validation=1", "problems.test=1",
    "training.rounds=2", "training.questions_per_round=2", "training.save_every=1",
    "evaluation.every=1", "sampling.max_new_tokens=24",
]  # fmt: skip


def run_in(session: Session) -> ConditionRun:
    return ConditionRun(session, load_experiment(QUICKSTART, SETTINGS), "reference", 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workspace in which one condition was trained for two rounds, with a checkpoint of each."""
    root = tmp_path_factory.mktemp("trained")
    with Session(root) as session:
        run = run_in(session)
        prepare.fn(base_run(session, run.experiment))
        for _ in range(2):
            round_ = first_round(run)
            for stage in (sample, align, distill):
                stage.fn(round_)
    return root


@pytest.fixture
def run(trained, tmp_path):
    root = shutil.copytree(trained, tmp_path / "copy")
    with Session(root) as session:
        yield run_in(session)


def damaged(run: ConditionRun) -> list[int]:
    return [policy.round for policy, _ in damaged_checkpoints(run)]


def remove(folder):
    shutil.rmtree(folder)


def remove_weights(folder):
    (folder / policies.FULL_FILE).unlink()


def flip_moments(folder):
    flip(folder / "trainer" / "state.safetensors")


def empty_checksums(folder):
    (folder / policies.CHECKSUMS).write_text("")


def put_a_file_there(folder):
    shutil.rmtree(folder)
    folder.write_text("no folder")


def put_another_there(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("round-0002"), folder)


DAMAGES = (
    remove, remove_weights, flip_moments, empty_checksums, put_a_file_there, put_another_there,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_noticed(run, damage):
    assert damaged(run) == []
    damage(run.checkpoint(1))
    assert damaged(run) == [1]


@pytest.mark.parametrize(("rounds", "last"), [((1,), 2), ((2,), 1), ((1, 2), 0)])
def test_what_is_lost_is_retrained_to_the_same_weights(run, rounds, last, capsys):
    before = {name: run.store.rows(name) for name in ("policies", "updates", "rollouts")}
    for round_ in rounds:
        put_a_file_there(run.checkpoint(round_))
    assert last_checkpoint(run).round == last
    restore(run)
    assert damaged(run) == []
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("retrained to the same weights") == len(rounds)
    assert all(run.store.rows(name).equals(rows) for name, rows in before.items())
    assert first_round(run).number == 2


def test_what_comes_out_otherwise_is_superseded_and_goes_on_from_the_last_whole_one(
    run, capsys, monkeypatch
):
    forgotten = []
    mlflow = SimpleNamespace(forget=lambda *run: forgotten.append(run[1:]))
    monkeypatch.setattr(run.session, "tracking", lambda: nullcontext(mlflow))
    remove(run.checkpoint(2))
    ids = run.store.rows("rollouts", round=1, purpose="train")["rollout_id"].to_list()
    run.store.supersede({"contexts": "rollout_id = $one"}, {"one": ids[0]})
    restore(run)
    said = " ".join(capsys.readouterr().err.split())
    assert "retrained to different weights; rows derived from the old ones" in said
    assert "after 1 rounds, moved to `superseded`" in said
    assert run.store.query("FROM superseded.policies")["round"].to_list() == [2]
    assert first_round(run).number == 1 and damaged(run) == []
    assert forgotten == [("reference", 3)]


def test_a_stage_is_redone_only_where_it_can_be(run):
    with pytest.raises(StoreError, match="no such round"):
        require_replaceable(run, Stage.evaluate, 3)
    remove(run.checkpoint(1))
    require_replaceable(run, Stage.evaluate, 1)
    assert damaged(run) == []
