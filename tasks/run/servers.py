"""The start of a run's vLLM server on this machine: its GPUs and its share of them."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from sdcore.config import EngineConfig, Experiment
from sdcore.distributed import collectives
from sdcore.errors import ConfigError, ModelError
from sdcore.planning.lengths import lengths_of
from sdcore.planning.memory import cache_room, training_memory
from sdcore.planning.placement import Placement, described, placements
from sdcore.planning.serving import refusals, serving_of, starts_server
from sdcore.planning.shapes import shape_of
from sdcore.system import gpus
from tasks.run.progress import note


@dataclass(frozen=True)
class Server:
    """Arguments that a server is started with.

    Attributes:
        settings: of the engine, with the cache and the context length that it gets.
        gpus: their names.
        share: part of each of its GPUs that it takes; None without a GPU.
        left: bytes that it leaves for the activations of a trainer on the same GPU; None if there
            is none.
    """

    settings: EngineConfig
    gpus: tuple[str, ...] = ()
    share: float | None = None
    left: float | None = None


def placements_here(experiment: Experiment, workers: int) -> list[Placement]:
    """Return the GPUs of a command's workers, of which this process is the first.

    Raises:
        ConfigError: the servers need more GPUs than there are.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    return placements(experiment, gpus.visible(), workers, ranks)


def say_gpus(experiment: Experiment, workers: int) -> None:
    """Say which GPU each worker's trainer, server and critic get.

    Raises:
        ConfigError: the servers need more GPUs than there are.
    """
    if there := gpus.visible():
        note(f"GPUs: {described(placements_here(experiment, workers), there)}")


def server_here(experiment: Experiment, folder: Path, placement: Placement) -> Server:
    """Return what the run's own server is started with, from the memory that is free now.

    Memory that this process holds itself counts as free: it is the trainer's, or will be.

    Args:
        experiment: its settings.
        folder: of the model.
        placement: the GPUs of this process.

    Raises:
        ConfigError: the server would not start, or not serve the longest response.
    """
    assert starts_server(experiment), "the run starts a server"
    engine = experiment.engine
    try:
        shape = shape_of(experiment.model.name, folder)
    except ModelError as error:
        if engine.cache_gib is not None or not placement.server:
            return Server(engine, placement.server)
        raise ConfigError(
            "the memory that this model takes is not known, so its server has to be told",
            got=error.got,
            where="engine.cache_gib",
            fix="set engine.cache_gib, and --gpu-memory-utilization in engine.arguments",
        ) from error
    lengths, free, beside, whole = lengths_of(experiment, folder, None), 0.0, None, 0
    if placement.server:
        device = gpus.visible().index(placement.server[0])
        unused, whole = torch.cuda.mem_get_info(device)
        free = unused + torch.cuda.memory_reserved(device)
        if placement.is_shared:
            ranks = collectives.rank_and_world_size()[1]
            beside = training_memory(experiment, shape, ranks, gpu=True)
    room = cache_room(experiment, shape, lengths, free, beside) if whole else None
    serving = serving_of(experiment, shape, lengths, room)
    for reason in refusals(experiment, shape, lengths, serving):
        raise ConfigError("the vLLM server cannot be started", got=reason, where=experiment.name)
    sized = {"cache_gib": serving.cache / 2**30, "context_length": serving.context_length}
    return Server(
        engine.model_copy(update=sized),
        placement.server,
        serving.share(whole) if whole else None,
        free - serving.total - beside.stays if beside else None,
    )
