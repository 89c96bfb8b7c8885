"""The weights and engines that a session keeps alive between its tasks.

They are caches: whatever is here can be rebuilt from the tables and checkpoints, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from sdcore.config import (
    ConditionSettings,
    EngineConfig,
    Experiment,
    LoraConfig,
    ModelConfig,
    TrainingConfig,
    WarmupConfig,
)
from sdcore.distributed import collectives, controller
from sdcore.engines import Engine, Resources, Served
from sdcore.engines.opening import open_engine
from sdcore.models import hub, policies
from sdcore.planning.memory import auto_tokens, logit_bytes, optimizer_bytes
from sdcore.planning.serving import starts_server
from sdcore.planning.shapes import Shape
from sdcore.system import gpus
from sdcore.system.memory import free_bytes, give_back
from sdcore.training import checkpoints
from sdcore.training.head import unwrap_peft
from sdcore.training.trainer import Trainer
from tasks.run.condition_run import BASE, ConditionRun
from tasks.run.progress import note
from tasks.run.servers import Server, placements_here, server_here

disable_progress_bar()  # of loading weights: the run has its own


class LiveModels:
    """Models of one workspace, each loaded once; at most one set of trainable weights.

    Attributes:
        folder: local folder with a named model's weights and tokenizer.
        tokenizer: a named model's tokenizer, whose chat template shows the given day.

    Args:
        root: folder of the workspace.
        workers: processes of the command, this one the first, among which the GPUs are shared out.
    """

    def __init__(self, root: Path, workers: int = 1) -> None:
        self._root, self._workers = root, workers
        self.folder: Callable[[str], Path] = cache(hub.resolve)
        self.tokenizer: Callable[[str, date], policies.Tokenizer] = cache(self._tokenizer)
        self._critic: Callable[[ModelConfig, str | None], Engine] = cache(self._critic_engine)
        self._base: Callable[[Path, ModelConfig], PreTrainedModel] = cache(policies.load_policy)
        self._samplers: dict[_SamplerKey, Engine] = {}
        self._servers: dict[_SamplerKey, Server] = {}  # how each sampler's own server is started
        self._engines: list[Engine] = []
        self._sampled: tuple[Engine, str] | None = None  # sampler, and the policy that it holds
        self._live: tuple[str, int, Trainer] | None = None  # run, its rounds, trainer

    def close(self) -> None:
        """Stop the engines' servers, and forget all weights."""
        while self._engines:
            self._engines.pop().close()
        self._live = self._sampled = None

    def context_length(self, name: str) -> int | None:
        """Positions of a named model, prompt and response together; None: it has no limit."""
        return policies.context_length(self.folder(name))

    def base_folder(self, run: ConditionRun) -> Path:
        """Model folder that all conditions start from: the named model's, or its warmed-up form."""
        experiment = run.experiment
        warmed_up = experiment.warmup is not None
        return run.base.checkpoint(0) if warmed_up else self.folder(experiment.model.name)

    def base_policy(self, run: ConditionRun) -> PreTrainedModel:
        """The weights that all conditions start from; nobody may change them."""
        return self._base(self.base_folder(run), run.experiment.model)

    def trainer(self, run: ConditionRun, round_: int) -> Trainer:
        """The run's trainer after `round_` rounds: the live one, or one restored from disk."""
        if self._live is None or self._live[:2] != (run.key(), round_):
            self._live = None  # frees its memory before the next is loaded
            self._live = run.key(), round_, self._restored(run, round_)
        return self._live[2]

    @contextmanager
    def training(self, run: ConditionRun, round_: int) -> Iterator[Trainer]:
        """Lend the trainer for a round; it counts as one round further only if the block succeeds.

        After a failure the live weights may be half updated: they are dropped, and the next use
        restores the last checkpoint.
        """
        live = self.trainer(run, round_)
        self._live = None
        give_back()  # what the sampler has freed
        yield live
        self._live = run.key(), round_ + 1, live

    def engine(self, run: ConditionRun, round_: int, policy_id: str) -> Engine:
        """The sampling engine with the weights of a policy loaded."""
        give_back()  # what the trainer has freed
        sampler = self.sampler(run)
        if self._sampled != (sampler, policy_id):
            self._sampled = None
            sampler.load(self._served(run, round_, policy_id, sampler))
            self._sampled = sampler, policy_id
        return sampler

    def sampler(self, run: ConditionRun) -> Engine:
        """The sampling engine, whatever it has loaded."""
        experiment, key = run.experiment, _sampler_key(run.experiment)
        if key not in self._samplers:
            settings, more = experiment.engine, dict[str, Any]()
            if starts_server(experiment):
                server = self._server(experiment)
                settings, more = server.settings, {"gpus": server.gpus, "share": server.share}
            lora = experiment.training.lora
            self._samplers[key] = self._open(experiment.model, settings, lora=lora, **more)
        return self._samplers[key]

    def critic_engine(self, run: ConditionRun, model: ModelConfig) -> Engine:
        """An engine of its own for a critic that runs in this process, on the GPU that it has."""
        return self._critic(model, placements_here(run.experiment, self._workers)[0].critic)

    def _server(self, experiment: Experiment) -> Server:
        """Return how the experiment's server is started, cached for the engine and the trainer."""
        key = _sampler_key(experiment)
        if key not in self._servers:
            placement = placements_here(experiment, self._workers)[0]
            folder = self.folder(experiment.model.name)
            self._servers[key] = server_here(experiment, folder, placement)
        return self._servers[key]

    def _served(self, run: ConditionRun, round_: int, policy_id: str, sampler: Engine) -> Served:
        base = self.base_folder(run)
        if run.condition == BASE or round_ == 0:
            live = None if sampler.reads_folders else self._base(base, run.experiment.model)
            return Served(policy_id, base, base, live=live)
        if samples_from_disk(run):
            return Served(policy_id, run.checkpoint(round_), base)
        return Served(policy_id, None, base, live=self._model(run, round_))

    def _model(self, run: ConditionRun, round_: int) -> policies.Policy:
        """The weights after `round_` rounds: those of the trainer, unless it cannot go on."""
        live = self._live is not None and self._live[:2] == (run.key(), round_)
        folder = run.checkpoint(round_)
        if live or checkpoints.has_state(folder):
            return self.trainer(run, round_).model
        self._live = None  # frees its memory before the next is loaded
        trainer = self._new(run)
        trainer.load_weights(folder)
        return trainer.model

    def new_trainer(
        self,
        run: ConditionRun,
        objective: ConditionSettings | WarmupConfig,
        folder: Path,
        total_steps: int,
    ) -> Trainer:
        """A trainer that starts from the weights of a model folder, on every rank there is."""
        experiment = run.experiment
        return controller.shared(
            partial(
                _made_trainer,
                folder,
                experiment.model,
                objective,
                experiment.training,
                total_steps=total_steps,
                seed=run.seed,
                temperature=experiment.sampling.temperature,
                left=self._server(experiment).left if starts_server(experiment) else None,
            )
        )

    def _restored(self, run: ConditionRun, round_: int) -> Trainer:
        trainer = self._new(run)
        if run.experiment.training.tokens_per_microbatch == "auto":
            tokens = f"{trainer.tokens_per_microbatch:,} tokens per micro-batch"
            note(f"{run.condition}, seed {run.seed}: {tokens} fit into the free memory")
        if round_:
            trainer.load(run.checkpoint(round_))
        return trainer

    def _new(self, run: ConditionRun) -> Trainer:
        training = run.experiment.training
        total_steps = training.rounds * training.steps_per_round
        return self.new_trainer(run, run.settings, self.base_folder(run), total_steps)

    def _tokenizer(self, name: str, day: date) -> policies.Tokenizer:
        return policies.load_tokenizer(self.folder(name), day)

    def _critic_engine(self, model: ModelConfig, gpu: str | None) -> Engine:
        device = gpus.visible().index(gpu) if gpu is not None else -1
        with torch.cuda.device(device):  # "cuda" is this one inside; -1 changes nothing
            return self._open(model, EngineConfig(), lora=None)

    def _open(self, model: ModelConfig, settings: EngineConfig, **resources: Any) -> Engine:
        made = Resources(model, self.folder(model.name), root=self._root, **resources)
        self._engines.append(open_engine(settings, made))
        return self._engines[-1]


_SamplerKey = tuple[ModelConfig, EngineConfig, LoraConfig | None]


def _sampler_key(experiment: Experiment) -> _SamplerKey:
    """Return the settings that a sampler is opened with: equal ones share it."""
    return experiment.model, experiment.engine, experiment.training.lora


def samples_from_disk(run: ConditionRun) -> bool:
    """Return whether the engine reads policies from checkpoints: it needs one each round."""
    reads_folders = run.session.models.sampler(run).reads_folders
    return reads_folders or run.experiment.training.sharded


def _made_trainer(
    folder: Path,
    model: ModelConfig,
    objective: ConditionSettings | WarmupConfig,
    training: TrainingConfig,
    *,
    seed: int,
    temperature: float,
    left: float | None,
    **settings: Any,
) -> Trainer:
    policy = collectives.together(partial(policies.load_policy, folder, model))
    if training.lora is not None:
        policy = policies.attach_lora(policy, training.lora, seed)
    made = Trainer(policy, objective, training, seed=seed, temperature=temperature, **settings)
    if training.tokens_per_microbatch == "auto":
        bare, gpu = unwrap_peft(policy), policy.device.type == "cuda"
        per_logit = logit_bytes(objective, model.dtype, temperature, gpu=gpu)
        made.tokens_per_microbatch = fitting_tokens(bare, training, model.dtype, per_logit, left)
    return made


def fitting_tokens(
    policy: PreTrainedModel,
    training: TrainingConfig,
    dtype: str,
    per_logit: float,
    left: float | None = None,
) -> int:
    """Return the tokens of a micro-batch that fit into the memory that is free now, on every rank.

    Args:
        policy: whose weights are in memory, and no gradient or moment yet.
        training: its settings.
        dtype: the model's, before trained weights were made float32.
        per_logit: see `planning.memory.logit_bytes`.
        left: bytes that a vLLM server leaves for activations on the same GPU, started or not.

    Raises:
        ModelError: the memory that this architecture takes is not known.
    """
    shape = Shape.of(policy.config.to_dict(), type(policy).__name__)
    gpu, ranks = policy.device.type == "cuda", collectives.rank_and_world_size()[1]
    free = free_bytes(policy.device) / (1 if gpu else ranks)
    free -= optimizer_bytes(shape, training, ranks)
    free = free if left is None else min(free, left)
    tokens = auto_tokens(training, dtype, shape, per_logit, free, gpu=gpu)
    return min(collectives.gather([tokens]))
