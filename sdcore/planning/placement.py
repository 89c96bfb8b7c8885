"""Which GPU the trainer, the vLLM server and a critic in the process get."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdcore.config import Experiment
from sdcore.errors import ConfigError
from sdcore.planning.serving import starts_server, tensor_parallel


@dataclass(frozen=True)
class Placement:
    """The GPUs of one process that trains, by their names in CUDA_VISIBLE_DEVICES.

    Attributes:
        trainer: one per rank.
        server: those of the vLLM server that it starts; none if it starts none.
        critic: that of a critic in this process; None without one.
    """

    trainer: tuple[str, ...]
    server: tuple[str, ...] = ()
    critic: str | None = None

    @property
    def visible(self) -> tuple[str, ...]:
        """All of them, each once, the trainer's first: what the process is given to see."""
        critic = () if self.critic is None else (self.critic,)
        return tuple(dict.fromkeys((*self.trainer, *self.server, *critic)))

    @property
    def is_shared(self) -> bool:
        """Return whether the server has the trainer beside it."""
        return bool({*self.trainer} & {*self.server})

    def __str__(self) -> str:
        parts = {"trainer": self.trainer, "vLLM": self.server}
        parts["critic"] = () if self.critic is None else (self.critic,)
        return ", ".join(f"{name} on {' '.join(gpus)}" for name, gpus in parts.items() if gpus)


def placements(
    experiment: Experiment, gpus: Sequence[str], workers: int = 1, ranks: int = 1
) -> list[Placement]:
    """Return the GPUs of each worker; without GPUs none are named.

    Each worker has as many neighbours as there are for each. Its trainer takes the first, with
    torchrun the first of them for each rank; the server takes the next ones, a critic one that is
    left. What finds none left shares the first. Only engines and critics in the process may share
    one GPU among workers: a server fills what it is given.

    Args:
        experiment: engine and critic.
        gpus: that the first process may use, in PyTorch's order.
        workers: processes that train conditions and seeds side by side.
        ranks: of torchrun on this machine.

    Raises:
        ConfigError: a server needs more GPUs than a worker has.
    """
    split = tensor_parallel(experiment) if starts_server(experiment) else 0
    critic = experiment.critic is not None and any(
        not model.addresses for model in experiment.critic.models
    )
    if not gpus:
        return [Placement(())] * workers
    each = len(gpus) // workers
    if split > each:
        raise ConfigError(
            "vLLM's servers need more GPUs than there are",
            got=f"{len(gpus)} for {workers} worker{'s' if workers > 1 else ''}",
            expected=f"{split} for each server",
            where="engine.arguments" if split > 1 else "--workers",
            fix=f"--workers {max(1, len(gpus) // split)}"
            if len(gpus) >= split
            else "take --tensor-parallel-size out of engine.arguments",
        )
    own = [gpus[each * i : each * (i + 1)] or [gpus[i % len(gpus)]] for i in range(workers)]
    return [placed(tuple(slot), ranks, split, critic=critic) for slot in own]


def placed(gpus: tuple[str, ...], ranks: int, split: int, *, critic: bool) -> Placement:
    """Place one worker on its GPUs: a trainer on each of `ranks`, its server on `split` of them."""
    trainer, rest = gpus[:ranks], gpus[ranks:]
    server = (rest if len(rest) >= split else gpus)[:split]
    left = [gpu for gpu in rest if gpu not in server]
    return Placement(trainer, server, (*left, gpus[0])[0] if critic else None)


def described(made: Sequence[Placement], gpus: Sequence[str]) -> str:
    """Return one line that says who has which GPU, and which of them have nothing to do."""
    workers = [
        f"worker {i}: {each}" if len(made) > 1 else str(each) for i, each in enumerate(made, 1)
    ]
    used = {gpu for each in made for gpu in each.visible}
    idle = [gpu for gpu in gpus if gpu not in used]
    return "; ".join([*workers, *([f"idle: {' '.join(idle)}"] if idle else [])])
