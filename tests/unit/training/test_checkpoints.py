import json

import pytest
import torch

from sdcore.errors import ModelError
from sdcore.models import weight_files
from sdcore.training import checkpoints
from tests.helpers.tiny import adapted, llama, save

SETTINGS = {"condition": {"beta": 0.5}, "seed": 0}


@pytest.fixture
def folder(tmp_path):
    state = {"exp_avg/a": torch.tensor([1.0, 2.0])}
    checkpoints.write(tmp_path / "checkpoint", adapted(), state, 7, SETTINGS)
    return tmp_path / "checkpoint"


def test_what_was_written_is_read(folder):
    step, state = checkpoints.read(folder, SETTINGS)
    assert step == 7
    assert state["exp_avg/a"].tolist() == [1, 2]


def test_digest_is_of_the_weights_alone(folder, tmp_path):
    save(adapted(), tmp_path / "weights")
    assert weight_files.folder_digest(folder) == weight_files.folder_digest(tmp_path / "weights")


def test_there_are_safetensors_json_and_checksums_only(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".sha256"}
    assert json.loads((folder / "trainer/state.json").read_text())["step"] == 7


def test_drifted_settings_are_all_named(folder):
    with pytest.raises(ModelError) as caught:
        checkpoints.read(folder, {"condition": {"beta": 0.9}, "seed": 1})
    assert "condition.beta was 0.5, is 0.9; seed was 0, is 1" in str(caught.value)


def test_weights_alone_are_no_checkpoint(tmp_path):
    save(llama(), tmp_path / "weights")
    with pytest.raises(ModelError, match="not a checkpoint"):
        checkpoints.read(tmp_path / "weights", SETTINGS)


@pytest.mark.parametrize("name", ["trainer/state.safetensors", "trainer/state.json"])
def test_damaged_state_is_refused(folder, name):
    whole = (folder / name).read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (whole[:-4], flipped, b""):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ModelError, match=f"changed: {name}"):
            checkpoints.read(folder, SETTINGS)
    (folder / name).write_bytes(whole)
    assert checkpoints.read(folder, SETTINGS)[0] == 7


def test_a_step_number_that_changed_is_refused(folder):
    """A wrong step would give the wrong learning rate and moments' correction."""
    about = folder / "trainer" / "state.json"
    about.write_text(about.read_text().replace('"step": 7', '"step": 6'))
    with pytest.raises(ModelError, match=r"trainer/state\.json"):
        checkpoints.read(folder, SETTINGS)


def test_a_crash_while_writing_leaves_the_last_checkpoint(folder, monkeypatch):
    def crash(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(weight_files, "save_tensors", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write(folder, adapted(), {}, 8, SETTINGS)
    assert checkpoints.read(folder, SETTINGS)[0] == 7
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_its_state_a_checkpoint_is_intact_but_cannot_be_resumed(folder, tmp_path):
    sha256 = weight_files.folder_digest(folder)
    checkpoints.require_whole(folder, sha256)
    size = sum((folder / name).stat().st_size for name in (checkpoints.STATE, checkpoints.ABOUT))
    assert checkpoints.drop_state(folder) == size
    checkpoints.write(tmp_path / "never", adapted(), None, 7, SETTINGS)
    for bare in (folder, tmp_path / "never"):
        weight_files.require(bare, sha256)
        assert not checkpoints.has_state(bare) and not (bare / "trainer").exists()
        with pytest.raises(ModelError, match="has the weights alone"):
            checkpoints.require_whole(bare, sha256)


@pytest.mark.parametrize("unlinked", [0, 1])
def test_a_crash_while_the_state_is_dropped_leaves_an_intact_folder(folder, monkeypatch, unlinked):
    sha256, unlink = weight_files.folder_digest(folder), type(folder).unlink
    left = [unlinked]

    def dies(path, missing_ok=False):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.drop_state(folder)
    weight_files.require(folder, sha256)
    assert not checkpoints.has_state(folder)
    with pytest.raises(ModelError, match="has the weights alone"):
        checkpoints.require_whole(folder, sha256)
    size = checkpoints.state_bytes(folder)
    assert size > 0 and checkpoints.drop_state(folder) == size
    weight_files.require(folder, sha256)
    assert not (folder / "trainer").exists()
