"""Bad inputs, each with the error that it gives: what, got, expected, where, fix.

The inputs are data, in the files beside this one. An entry's `error` is a regular expression that
its message matches.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.commands import main
from sdcore.config import ProblemsConfig, load_experiment
from sdcore.errors import ConfigError, DataError, ModelError, SdcoreError
from sdcore.problems.screening import screen
from sdcore.problems.sources import read_records
from sdcore.reports.viewer.server import viewer
from sdcore.store.database import Store
from tests.helpers.example import EXPERIMENT, fill
from tests.helpers.models import use
from tests.helpers.paths import QUICKSTART


def corpus(name):
    lines = Path(__file__).with_name(f"{name}.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return pytest.mark.parametrize("entry", entries, ids=[f"{n}" for n in range(len(entries))])


def require_explained(error: SdcoreError, pattern: str) -> None:
    """An error says what was got or where, and not in the words of a Python exception alone."""
    assert re.search(pattern, str(error), re.DOTALL), str(error)
    assert error.got not in (None, "") or error.where or error.fix
    assert len(str(error)) < 5000


@corpus("settings")
def test_settings(entry):
    with pytest.raises(ConfigError) as caught:
        load_experiment(QUICKSTART, [entry["override"]])
    require_explained(caught.value, entry["error"])


@corpus("experiment_files")
def test_experiment_files(entry, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(entry["text"], "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    require_explained(caught.value, entry["error"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_problems(kind, tmp_path, subtests):
    lines = Path(__file__).with_name(f"{kind}.jsonl").read_text("utf-8").splitlines()
    for entry in map(json.loads, lines):
        with subtests.test(content=entry["content"][:40]):
            path = tmp_path / f"x.{kind}"
            path.write_text(entry["content"], "utf-8", newline="")
            try:
                rows = list(read_records(config := ProblemsConfig(source=kind, path=path)))
                assert not rows or not screen(rows, config)[0]
            except DataError as error:
                require_explained(error, entry["error"])


def test_the_model_itself_is_fine(model):
    use(model)


@corpus("models")
def test_model_folders(entry, model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    path = folder / entry["file"]
    if "set" in entry:
        path.write_text(json.dumps(json.loads(path.read_text()) | entry["set"]))
    elif "text" in entry:
        path.write_bytes(entry["text"].encode("latin-1"))
    elif "fill" in entry:
        tensors = load_file(path)
        like = tensors[entry["tensor"]].to(getattr(torch, entry["dtype"]))
        tensors[entry["tensor"]] = torch.full_like(like, float(entry["fill"]))
        save_file(tensors, path, {"format": "pt"})
    else:
        path.unlink()
    try:
        use(folder)
    except (ModelError, ConfigError) as error:
        require_explained(error, "" if entry["error"] == "Error" else entry["error"])
    else:  # transformers can do without what is wrong
        assert entry["error"] is None


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    for name in ("workspace", "empty", "garbage", "cut"):
        (folder / name).mkdir()
    with fill(Store(folder / "workspace" / "sdcore.duckdb")):
        pass
    whole = (folder / "workspace" / "sdcore.duckdb").read_bytes()
    (folder / "empty" / "sdcore.duckdb").write_bytes(b"")
    (folder / "garbage" / "sdcore.duckdb").write_bytes(b"garbage" * 999)
    (folder / "cut" / "sdcore.duckdb").write_bytes(whole[:5000])
    names = {name: str(folder / name) for name in ("workspace", "empty", "garbage", "cut")}
    return names | {"folder": str(folder), "long": str(folder / ("x" * 300))}


@corpus("commands")
def test_commands(entry, places, monkeypatch, capsys):
    arguments = [argument.format(**places) for argument in entry["arguments"]]
    monkeypatch.setattr(sys, "argv", ["sdcore", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.main()
    printed = capsys.readouterr().err
    assert caught.value.code == 1 and printed.startswith("error: ")
    assert re.search(entry["error"], printed, re.DOTALL), printed
    assert (
        "Traceback" not in printed and "--debug" not in printed
    )  # of an error that nobody foresaw
    assert "\x1b" not in printed and re.search(r"\n  (got|where|fix): ", printed)


@pytest.fixture(scope="module")
def site(places):
    store = Store(Path(places["workspace"]) / "sdcore.duckdb")
    transport = httpx.ASGITransport(viewer(store))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@corpus("pages")
def test_pages(entry, site):
    import asyncio

    answer = asyncio.run(site.get(entry["path"].format(run=EXPERIMENT.experiment_id)))
    assert answer.status_code == entry["status"]
