"""Checkpoints that are missing or damaged are retrained on the stored rollouts."""

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from sdcore.config import load_experiment
from sdcore.errors import StoreError
from sdcore.models import sealed, weight_files
from sdcore.schedule import Stage
from sdcore.training import checkpoints
from tasks.align import align
from tasks.distill import distill
from tasks.maintenance.prune import prune
from tasks.maintenance.restore import require_replaceable, restore
from tasks.prepare import prepare
from tasks.run.checkpoints import damage, damaged_checkpoints, last_checkpoint
from tasks.run.condition_run import ConditionRun, base_run
from tasks.run.rounds import first_round
from tasks.run.session import Session
from tasks.sample import sample
from tasks.tracking import champions
from tests.helpers.paths import QUICKSTART
from tests.helpers.tiny import flip

SETTINGS = [
    "seeds=[3]", "problems.train=4", "problems.validation=1", "problems.test=1",
    "training.rounds=2", "training.questions_per_round=2", "training.save_every=1",
    "evaluation.every=1", "sampling.max_new_tokens=24",
]  # fmt: skip


def run_in(session: Session, condition: str = "reference") -> ConditionRun:
    return ConditionRun(session, load_experiment(QUICKSTART, SETTINGS), condition, 3)


def train(run: ConditionRun, rounds: int) -> None:
    prepare.fn(run.base)
    for _ in range(rounds):
        round_ = first_round(run)
        for stage in (sample, align, distill):
            stage.fn(round_)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workspace in which one condition was trained for two rounds, with a checkpoint of each."""
    root = tmp_path_factory.mktemp("trained")
    with Session(root) as session:
        train(run_in(session), 2)
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
    (folder / weight_files.FULL_FILE).unlink()


def flip_moments(folder):
    flip(folder / "trainer" / "state.safetensors")


def empty_checksums(folder):
    (folder / sealed.CHECKSUMS).write_text("")


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


def test_a_round_whose_groups_are_no_longer_whole_is_superseded(tmp_path, monkeypatch):
    with Session(tmp_path) as session:
        run = run_in(session, "grpo")
        monkeypatch.setattr(
            session, "tracking", lambda: nullcontext(SimpleNamespace(forget=lambda *_: None))
        )
        train(run, 1)
        remove(run.checkpoint(1))
        lost = run.store.rows("rollouts", purpose="train")["rollout_id"][0]
        run.store.supersede({"rollouts": "rollout_id = $one"}, {"one": lost})
        restore(run)
        assert run.store.query("FROM superseded.policies")["round"].to_list() == [1]
        assert first_round(run).number == 0 and damaged(run) == []


def test_a_stage_is_redone_only_where_it_can_be(run):
    with pytest.raises(StoreError, match="no such round"):
        require_replaceable(run, Stage.evaluate, 3)
    remove(run.checkpoint(1))
    require_replaceable(run, Stage.evaluate, 1)
    assert damaged(run) == []


@pytest.fixture
def no_champion(run, monkeypatch):
    tracking = SimpleNamespace(champion=lambda experiment: None)
    monkeypatch.setattr(run.session, "tracking", lambda: nullcontext(tracking))
    return run


def interrupted(path, missing_ok=False):
    raise KeyboardInterrupt


def test_pruning_frees_the_moments_of_older_checkpoints_and_their_weights_still_sample(
    no_champion, monkeypatch
):
    run, base = no_champion, no_champion.base
    old = run.checkpoint(1)
    (remains := old.with_name(".round-0003-killed")).mkdir()
    before = run.store.rows("policies")
    planned = prune(base)
    assert [(each.folder, each.part) for each in planned] == [
        (remains, "remains"),
        (old, "moments"),
    ]
    assert remains.exists() and (old / "trainer").exists()  # nothing was asked to be deleted
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(old), "unlink", interrupted)
        checkpoints.drop_state(old)
    assert prune(base) == planned  # also of a deletion that was killed
    assert prune(base, delete=True) == planned and prune(base) == []
    # two moments per weight
    assert planned[1].size == pytest.approx(
        2 * (old / weight_files.FULL_FILE).stat().st_size, rel=0.1
    )
    assert not remains.exists() and not (old / "trainer").exists()
    assert damaged(run) == [] and run.store.rows("policies").equals(before)
    assert (last_checkpoint(run).round, last_checkpoint(run, 1).round) == (2, 0)
    sampler = run.session.models.engine(run, 1, "any")
    assert weight_files.digest(weight_files.gathered(sampler.model)) == run.policy(1).sha256
    assert run.session.models.trainer(run, 2).digest() == run.policy(2).sha256


def test_a_scored_checkpoint_that_was_not_chosen_is_freed_on_request_and_comes_back(no_champion):
    run, base = no_champion, no_champion.base
    (freed,) = prune(base, unchosen=True, delete=True)
    assert (freed.folder, freed.part) == (run.checkpoint(1), "checkpoint")
    assert [policy.path is None for policy in map(run.policy, (1, 2))] == [True, False]
    assert damaged(run) == [] and not freed.folder.exists()
    restore(run, [1])
    assert damage(run.root, run.policy(1), resumable=True) is None


def test_a_freed_checkpoint_that_is_chosen_after_all_stays_from_then_on(no_champion):
    run, base = no_champion, no_champion.base
    prune(base, unchosen=True, delete=True)
    with run.session.tracking() as tracking:
        tracking.register = lambda *given: "1"
    assert champions._register(base, champions.Chosen("reference", 3, 1), []) == "1"
    assert run.root / run.policy(1).path == run.checkpoint(1)
    remove(run.checkpoint(1))
    assert damaged(run) == [1]


def test_where_a_sampler_reads_from_disk_a_round_that_is_not_due_has_the_weights_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tasks.distill.samples_from_disk", lambda run: True)
    settings = [*SETTINGS, "training.save_every=2", "evaluation.every=2"]
    with Session(tmp_path) as session:
        run = ConditionRun(session, load_experiment(QUICKSTART, settings), "reference", 3)
        prepare.fn(base_run(session, run.experiment))
        round_ = first_round(run)
        for stage in (sample, align, distill):
            stage.fn(round_)
        assert not (run.checkpoint(1) / "trainer").exists()
        assert damage(run.root, run.policy(1), resumable=False) is None
        assert damaged(run) == [1]  # training cannot go on from it
        restore(run)
        assert damaged(run) == [] and first_round(run).number == 1
