"""The weights and engines that this process keeps alive between its tasks.

They are caches: whatever is here can be rebuilt from the tables and checkpoints, bit for bit.
"""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from sdcore.config import (
    ConditionSettings,
    EngineConfig,
    ModelConfig,
    TrainingConfig,
    WarmupConfig,
)
from sdcore.distributed import controller
from sdcore.engines import Engine, Resources, Served
from sdcore.engines.opening import open_engine
from sdcore.models import hub, policies
from sdcore.system.stopwatch import STOPWATCH
from sdcore.training.trainer import Trainer
from tasks.run.lineage import BASE, Lineage

disable_progress_bar()  # of loading weights: the run has its own

_live: dict[str, tuple[int, Trainer]] = {}
_sampled: dict[Engine, str] = {}


@cache
def model_folder(name: str) -> Path:
    """Local folder with the named model's weights and tokenizer."""
    return hub.resolve(name)


def base_folder(lineage: Lineage) -> Path:
    """Model folder that all conditions start from: the named model's, or its warmed-up form's."""
    experiment = lineage.experiment
    return lineage.base.checkpoint(0) if experiment.warmup else model_folder(experiment.model.name)


@cache
def tokenizer(name: str) -> policies.Tokenizer:
    """The base model's tokenizer."""
    return policies.load_tokenizer(model_folder(name))


def trainer(lineage: Lineage, round_: int) -> Trainer:
    """The lineage's trainer after `round_` rounds: the live one, or one restored from disk."""
    key = _key(lineage)
    if key not in _live or _live[key][0] != round_:
        _live.clear()  # one set of trainable weights in memory at a time
        with STOPWATCH.measure("compute"):
            _live[key] = round_, _restored(lineage, round_)
    return _live[key][1]


@contextmanager
def training(lineage: Lineage, round_: int) -> Iterator[Trainer]:
    """Lend the trainer for a round; it counts as one round further only if the block succeeds.

    After a failure the live weights may be half updated: they are dropped, and the next use
    restores the last checkpoint.
    """
    live = trainer(lineage, round_)
    _live.clear()
    yield live
    _live[_key(lineage)] = round_ + 1, live


def samples_from_disk(lineage: Lineage) -> bool:
    """Whether the sampling engine reads a policy from its checkpoint: it needs one each round."""
    return _sampler(lineage).reads_folders or lineage.experiment.training.sharded


def engine(lineage: Lineage, round_: int, policy_id: str) -> Engine:
    """The sampling engine with the weights of a policy loaded."""
    base, sampler = base_folder(lineage), _sampler(lineage)
    if _sampled.get(sampler) == policy_id:
        return sampler
    if lineage.condition == BASE or round_ == 0:
        live = None if sampler.reads_folders else _base(base, lineage.experiment.model)
        served = Served(policy_id, base, base, live=live)
    elif samples_from_disk(lineage):  # sharded: no rank has the live weights whole
        served = Served(policy_id, lineage.checkpoint(round_), base)
    else:
        served = Served(policy_id, None, base, live=trainer(lineage, round_).model)
    sampler.load(served)
    _sampled[sampler] = policy_id
    return sampler


def _sampler(lineage: Lineage) -> Engine:
    experiment = lineage.experiment
    return _opened(
        experiment.engine,
        Resources(
            experiment.model,
            model_folder(experiment.model.name),
            experiment.training.lora,
            lineage.root,
        ),
    )


def base_policy(lineage: Lineage) -> policies.PreTrainedModel:
    """The weights that all conditions start from; nobody may change them."""
    return _base(base_folder(lineage), lineage.experiment.model)


def new_trainer(
    lineage: Lineage, objective: ConditionSettings | WarmupConfig, folder: Path, total_steps: int
) -> Trainer:
    """A trainer that starts from the weights of a model folder, on every rank there is."""
    experiment = lineage.experiment
    return controller.shared(
        partial(
            _made_trainer,
            folder,
            experiment.model,
            objective,
            experiment.training,
            total_steps=total_steps,
            seed=lineage.seed,
            temperature=experiment.sampling.temperature,
        )
    )


def _made_trainer(
    folder: Path,
    model: ModelConfig,
    objective: ConditionSettings | WarmupConfig,
    training: TrainingConfig,
    *,
    seed: int,
    **settings: Any,
) -> Trainer:
    policy = policies.load_policy(folder, model)
    if training.lora is not None:
        policy = policies.attach_lora(policy, training.lora, seed)
    return Trainer(policy, objective, training, seed=seed, **settings)


def _restored(lineage: Lineage, round_: int) -> Trainer:
    training = lineage.experiment.training
    total_steps = training.rounds * training.steps_per_round
    trainer = new_trainer(lineage, lineage.settings, base_folder(lineage), total_steps)
    if round_:
        trainer.load(lineage.checkpoint(round_))
    return trainer


@cache
def _base(folder: Path, model: ModelConfig) -> policies.PreTrainedModel:
    return policies.load_policy(folder, model)


@cache
def critic_engine(name: str) -> Engine:
    """An engine of its own for a critic that runs in this process."""
    resources = Resources(ModelConfig(name=name), model_folder(name), None, Path())
    return open_engine(EngineConfig(), resources)


@cache
def _opened(settings: EngineConfig, resources: Resources) -> Engine:
    engine = open_engine(settings, resources)
    atexit.register(engine.close)
    return engine


def _key(lineage: Lineage) -> str:
    return lineage.key(str(lineage.root))
