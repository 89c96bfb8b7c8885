from pathlib import Path

import pytest

from sdcore.errors import ModelError
from sdcore.models import sealed, weight_files
from tests.helpers.tiny import adapted, llama, save


def test_checksums_are_those_of_sha256sum(tmp_path):
    with sealed.replacing(tmp_path / "folder") as fresh:
        (fresh / "below").mkdir()
        (fresh / "below" / "a b.txt").write_text("abc")
    # the SHA-256 of "abc" is the example of FIPS 180-2, B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "folder" / sealed.CHECKSUMS).read_text() == f"{digest}  below/a b.txt\n"
    sealed.require_intact(tmp_path / "folder")
    (tmp_path / "folder" / "below" / "a b.txt").unlink()
    with pytest.raises(ModelError, match=r"below/a b\.txt"):
        sealed.require_intact(tmp_path / "folder")
    with pytest.raises(ModelError, match="no checksums"):
        sealed.require_intact(tmp_path)


def test_failed_save_leaves_the_old_folder_and_no_litter(tmp_path):
    save(llama(), tmp_path / "weights")
    before = weight_files.folder_digest(tmp_path / "weights")
    with pytest.raises(RuntimeError), sealed.replacing(tmp_path / "weights") as fresh:
        (fresh / "model.safetensors").write_bytes(b"half")
        raise RuntimeError
    assert weight_files.folder_digest(tmp_path / "weights") == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_save_that_dies_while_it_deletes_the_old_folder_leaves_no_part_of_it(
    tmp_path, monkeypatch
):
    def dies(folder, **_):
        next(Path(folder).rglob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    save(llama(), tmp_path / "weights")
    monkeypatch.setattr(sealed.shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        save(adapted(), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_second_save_takes_the_firsts_place(tmp_path):
    save(llama(), tmp_path / "weights")
    save(adapted(), tmp_path / "weights")
    assert not (tmp_path / "weights" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
