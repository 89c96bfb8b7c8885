"""How a run's vLLM server is started on a machine, whose GPUs are made up here."""

import pytest
import torch

from sdcore.config import load_experiment
from sdcore.errors import ConfigError
from sdcore.models import hub
from sdcore.planning.placement import Placement
from sdcore.planning.shapes import shape_of
from sdcore.system import gpus
from tasks.run.servers import placements_here, server_here
from tests.helpers.paths import QUICKSTART

FOLDER = hub.resolve("builtin:tiny-solver")
GIB = 2**30


def experiment(*overrides):
    lora = ["engine.kind=vllm", "model.dtype=bfloat16", "training.lora.rank=4"]
    return load_experiment(QUICKSTART, [*lora, *overrides])


@pytest.fixture
def machine(monkeypatch):
    """GPUs by name, with the bytes that are free and all of them, and those that we hold."""

    def has(*names, free, total, held=0):
        monkeypatch.setattr(gpus, "visible", lambda: names)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], total))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)

    return has


def test_without_a_gpu_the_cache_is_that_of_the_file_or_4_gib():
    assert placements_here(experiment(), 1) == [Placement(())]
    server = server_here(experiment(), FOLDER, Placement(()))
    assert (server.settings.cache_gib, server.settings.context_length) == (4, 512)
    assert server.gpus == () and server.share is None and server.left is None
    set_ = server_here(experiment("engine.cache_gib=0.5"), FOLDER, Placement(()))
    assert set_.settings.cache_gib == 0.5


def test_beside_the_trainer_it_takes_what_it_needs_and_leaves_the_rest(machine):
    machine("0", free=[20 * GIB], total=40 * GIB)
    server = server_here(experiment(), FOLDER, placements_here(experiment(), 1)[0])
    shape = shape_of("", FOLDER)
    token = 2 * shape.layers * shape.keys * 2
    # 128 sequences of about 16 + 96 tokens; weights in 2 bytes, and 3 GiB beside them.
    cache = server.settings.cache_gib * GIB
    assert 128 * 100 * token < cache < 128 * 130 * token
    assert server.settings.context_length == 512 and server.gpus == ("0",)
    taken = 2 * shape.parameters + cache + 3 * GIB
    assert server.share == pytest.approx(taken / (40 * GIB), abs=1e-3)
    adapters = shape.lora_parameters(experiment().training.lora)
    trainer = 2 * shape.parameters + 16 * adapters + 0.6 * GIB
    assert server.left == pytest.approx(20 * GIB - taken - trainer)


def test_what_this_process_holds_counts_as_free(machine):
    machine("0", free=[20 * GIB], total=40 * GIB)
    before = server_here(experiment(), FOLDER, placements_here(experiment(), 1)[0])
    machine("0", free=[5 * GIB], total=40 * GIB, held=15 * GIB)
    assert server_here(experiment(), FOLDER, placements_here(experiment(), 1)[0]) == before


def test_on_a_gpu_of_its_own_that_ones_memory_counts(machine):
    machine("0", "1", free=[1 * GIB, 20 * GIB], total=40 * GIB)
    server = server_here(experiment(), FOLDER, placements_here(experiment(), 1)[0])
    assert server.gpus == ("1",) and server.left is None and server.share < 0.1


def test_what_does_not_fit_is_refused_with_what_to_set(machine):
    machine("0", free=[3.2 * GIB], total=40 * GIB)
    placement = placements_here(experiment(), 1)[0]
    with pytest.raises(ConfigError, match="cannot be started") as caught:
        server_here(experiment(), FOLDER, placement)
    assert "0.0 GiB are left for its cache" in caught.value.got
    assert "training.activation_checkpointing" in caught.value.got


def test_a_model_of_unknown_size_needs_its_settings(machine, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    machine("0", free=[20 * GIB], total=40 * GIB)
    placement = placements_here(experiment(), 1)[0]
    with pytest.raises(ConfigError, match="is not known") as caught:
        server_here(experiment(), tmp_path, placement)
    assert "engine.cache_gib" in caught.value.fix
    given = experiment("engine.cache_gib=2")
    assert server_here(given, tmp_path, placement).settings == given.engine
