"""From work to hours: what each stage takes on a machine, what bounds it, what it costs."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from math import ceil
from operator import add

from sdcore.config import ConditionSettings, Experiment, LlmCriticConfig
from sdcore.planning.lengths import Lengths
from sdcore.planning.machines import Machine
from sdcore.planning.memory import (
    HOLES,
    Memory,
    allowed_tokens,
    batch_rows,
    engine_limit,
    memory_of,
    misfits,
    server_of,
)
from sdcore.planning.serving import Serving, sampling_devices, tensor_parallel
from sdcore.planning.shapes import BYTES, Shape
from sdcore.planning.work import (
    CRITIC_RATE,
    CRITIQUE_BYTES,
    EMPTY_BYTES,
    SIGNAL_BYTES,
    Step,
    checkpoint_bytes,
    context_bytes,
    rollout_bytes,
    step_of,
    warmup_step,
    written_bytes,
)
from sdcore.schedule import checkpoint_rounds, lineages, signal_rounds

STAGES = ("prepare", "warm-up", "sample", "align", "distill", "evaluate", "compare")
WAITING = 1.1  # rows per running one: a finished sample leaves its batch with others
CONTEXT_HANDLING = 5  # rollouts' handling per context that is built, as in a finished quickstart
ORACLE_HANDLING = 3  # the same per critique of an exact critic
SCORING = 0.3  # seconds per scored split: bootstrap and rows
PREPARING = 1.5  # seconds
CRITIC_SHARE = 0.5  # mean answer of a language model as critic over critic.max_tokens; assumed
REFUSED = 0.5  # share of a cascade's traces that go on to the large model; assumed
CRITIC_PROMPT = 600  # tokens of the critic's instructions
HARD = 0.5  # share of candidates that the solver's measures leave to the critic; assumed
CANDIDATES = 2.0  # problems measured per problem wanted for a band, at most its `candidates`


@dataclass(frozen=True)
class Cost:
    """Time and material of a stage; costs add up.

    Attributes:
        seconds: wall time that it adds.
        busy: device-seconds in which a device computes.
        tokens: that the model reads or writes.
        flops: of the model.
        critic_in: tokens that a language model as critic reads.
        critic_out: tokens that it writes.
        price: of both, in the currency of the critic's prices.
        written: bytes on disk.
    """

    seconds: float = 0.0
    busy: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    critic_in: float = 0.0
    critic_out: float = 0.0
    price: float = 0.0
    written: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(add, astuple(self), astuple(other)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(times * part for part in astuple(self)))


def total(costs: Sequence[Cost]) -> Cost:
    """Add up costs."""
    return sum(costs, start=Cost())


def _less(cost: Cost, seconds: float) -> Cost:
    return replace(cost, seconds=cost.seconds - seconds)


@dataclass(frozen=True)
class Plan:
    """Time, work and memory of an experiment on a machine.

    Attributes:
        stages: cost by stage, in order, of all conditions and seeds.
        lineages: seconds of each condition and seed, in the order in which they train.
        memory: of the fullest device.
        serving: the vLLM server that the run starts, if it does.
        kept: bytes of the checkpoints that stay.
        misfits: what does not fit, and the setting that fixes it.
    """

    experiment: Experiment
    shape: Shape
    machine: Machine
    lengths: Lengths
    stages: dict[str, Cost]
    lineages: tuple[float, ...]
    memory: Memory
    serving: Serving | None
    kept: float
    misfits: tuple[str, ...]

    @cached_property
    def whole(self) -> Cost:
        """All stages together, one after another."""
        return total(list(self.stages.values()))

    @property
    def tokens_per_microbatch(self) -> int:
        """Most positions of a micro-batch, also where the setting is `auto`."""
        return allowed_tokens(self.experiment, self.shape, self.machine, self.memory)

    @property
    def holes(self) -> float:
        """Bytes that glibc may hold beside `memory` on a CPU: freed ones between tensors in use."""
        return 0.0 if self.machine.gpu else HOLES * self.memory.activations

    @property
    def tight(self) -> bool:
        """Whether it fits only if the allocator leaves few holes."""
        return not self.misfits and self.memory.total + self.holes > self.machine.memory

    @property
    def device_seconds(self) -> float:
        """Seconds of all devices, busy or not."""
        return self.machine.count * self.whole.seconds

    @property
    def use(self) -> float:
        """Share of the devices' time in which they compute."""
        return self.use_with(1)

    @property
    def bound(self) -> str:
        """The stage that takes longest, and why."""
        name = max(self.stages, key=lambda stage: self.stages[stage].seconds)
        share = self.stages[name].seconds / self.whole.seconds
        return f"{name}, {share:.0%} of the time: {self._reason(name)}"

    def seconds_with(self, workers: int) -> float:
        """Return the wall time with several workers, each on such a machine of its own.

        Each takes the next free condition and seed, as `sdcore run --workers` does.
        """
        ends = [0.0] * workers
        for seconds in self.lineages:
            ends[ends.index(min(ends))] += seconds
        return self.whole.seconds - sum(self.lineages) + max(ends)

    def use_with(self, workers: int) -> float:
        """Return the share of the workers' device time in which a device computes."""
        devices = workers * self.machine.count
        return self.whole.busy / (devices * self.seconds_with(workers))

    @property
    def second_worker(self) -> str:
        """Return the benefit of one more worker."""
        if len(self.lineages) == 1:
            return "nothing: there is one condition and one seed"
        together = duration(self.seconds_with(2))
        return (
            f"{together} instead of {duration(self.whole.seconds)}, if it has devices of its own "
            "(`sdcore run --workers 2`)"
        )

    def _reason(self, stage: str) -> str:
        critic = self.experiment.critic
        if stage == "align" and critic and critic.models:
            most = " and ".join(str(model.under_way) for model in critic.models)
            return (
                f"each round waits for the critic, {most} answers at a time "
                "(critic.concurrency, more servers in critic.base_url, fewer critic.max_tokens)"
            )
        if stage in ("sample", "evaluate"):
            if self.machine.gpu and tensor_parallel(self.experiment) < self.machine.count:
                return f"{sampling_devices(self.experiment)} of {self.machine.count} devices sample"
            return "tokens are drawn one after another; larger batches cost little more"
        return "passes of student and teacher over the model" if stage == "distill" else "its work"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use, such as `7 min` or `12.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def plan(experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths) -> Plan:
    """Return what an experiment takes on a machine, from its settings and the model's shape alone.

    Conditions and seeds run one after another. Training is started with torchrun where the machine
    has several devices, and takes all of them.
    """
    machine = machine.computing_in(experiment.model.dtype)
    memory = memory_of(experiment, shape, machine, lengths)
    serving = server_of(experiment, shape, machine, lengths)
    limit = engine_limit(machine, memory.stays)
    rows = batch_rows(experiment, shape, lengths, limit, serving)
    work = _Work(experiment, shape, machine, lengths, rows)
    stages = {stage: Cost() for stage in STAGES}
    for stage, cost in work.shared():
        stages[stage] += cost
    own = dict[str, float]()  # seconds of a condition and any one seed
    winners = {names[0] for names in experiment.families.values()}  # any of them may win
    for name, condition in experiment.conditions.items():
        tested = name not in experiment.trials or name in winners
        costs = list(work.lineage(condition, tested=tested))
        for stage, cost in costs:
            stages[stage] += cost * len(experiment.seeds)
        own[name] = sum(cost.seconds for _, cost in costs)
    kept = sum(
        len(checkpoint_rounds(experiment, condition))
        * checkpoint_bytes(experiment, shape, condition)
        for condition in experiment.conditions.values()
    )
    return Plan(
        experiment,
        shape,
        machine,
        lengths,
        stages,
        tuple(own[name] for name, _ in lineages(experiment)),
        memory,
        serving,
        len(experiment.seeds) * kept,
        tuple(misfits(experiment, shape, machine, lengths, memory)),
    )


@dataclass(frozen=True)
class _Work:
    """The costs of single stages."""

    experiment: Experiment
    shape: Shape
    machine: Machine
    lengths: Lengths
    rows: int  # that are decoded together

    def shared(self) -> Iterator[tuple[str, Cost]]:
        """Return what is done once: prepare, warm-up, difficulty, the base's scores, comparison."""
        starting = 0.6 * self.machine.start
        yield "prepare", Cost(seconds=starting + PREPARING, written=EMPTY_BYTES)
        yield "compare", Cost(seconds=self.machine.start - starting)
        if band := self.experiment.problems.band:
            counts, wanted = self.experiment.problems, min(CANDIDATES, band.candidates)
            for problems in (counts.train, counts.validation, counts.test):
                measured = ceil(wanted * problems)
                yield "prepare", self.sampled(measured, band.samples)
                yield "prepare", self.tried(ceil(HARD * measured))
        if warmup := self.experiment.warmup:
            step = warmup_step(self.experiment, self.shape, self.lengths, warmup)
            yield "warm-up", self.trained(step) * warmup.steps
        yield from self.scored(tested=True)

    def lineage(self, condition: ConditionSettings, *, tested: bool) -> Iterator[tuple[str, Cost]]:
        """Return the stages of a condition and seed; a trial that loses is not tested."""
        training, lengths = self.experiment.training, self.lengths
        rollouts = training.questions_per_round * condition.group_size
        step = step_of(self.experiment, self.shape, lengths, condition)
        sampled = self.sampled(training.questions_per_round, condition.group_size)
        aligned = self.aligned(condition, rollouts)
        beside = self.streamed(rollouts) * sampled.seconds
        aligned = replace(aligned, seconds=max(0.0, aligned.seconds - beside))
        handling = self.machine.round + rollouts * self.machine.handling
        trained = self.trained(step) + Cost(seconds=handling)
        waits, samples = self.hidden(sampled.seconds, aligned.seconds, trained.seconds)
        yield "sample", _less(sampled * training.rounds, samples)
        yield "align", _less(aligned * training.rounds, waits)
        yield "distill", trained * training.rounds
        signals = len(signal_rounds(self.experiment)) * rollouts * lengths.response * SIGNAL_BYTES
        stored = written_bytes(self.experiment, self.shape, condition)
        yield "distill", Cost(seconds=stored / self.machine.disk, written=stored + signals)
        scores = total([cost for _, cost in self.scored(tested=tested)])
        idle = self.idle(aligned.seconds - waits, trained.seconds - samples)
        beside = min(scores.seconds, idle)
        for checkpoint in checkpoint_rounds(self.experiment, condition):
            yield "evaluate", scores if checkpoint == training.rounds else _less(scores, beside)

    def scored(self, *, tested: bool) -> Iterator[tuple[str, Cost]]:
        """One policy on validation and, if asked, on test."""
        problems, evaluation, scoring = (
            self.experiment.problems, self.experiment.evaluation, Cost(seconds=SCORING)
        )  # fmt: skip
        yield (
            "evaluate",
            self.sampled(problems.validation, evaluation.validation_samples) + scoring,
        )
        if tested:
            yield "evaluate", self.sampled(problems.test, evaluation.samples) + scoring

    def sampled(self, questions: int, samples: int) -> Cost:
        """Responses to some questions."""
        machine, lengths, shape = self.machine, self.lengths, self.shape
        vllm, dtype = self.experiment.engine.kind == "vllm", self.experiment.model.dtype
        requests = questions * samples
        rows = min(requests, self.rows)
        written = requests * lengths.response
        drawn = written if vllm else WAITING * written  # rows that are decoded
        passes = written / rows + lengths.longest - lengths.response  # the last ones run on alone
        if not vllm:
            passes = ceil(requests / rows) * lengths.longest
        devices = sampling_devices(self.experiment)
        context = lengths.prompt + lengths.response / 2
        attention = 4 * shape.layers * shape.queries * context
        flops = (2 * (shape.body + shape.unembedding) + attention) * drawn
        read = passes * (shape.body + shape.unembedding) * BYTES[dtype]
        read += drawn * context * shape.cache_bytes(dtype)
        speed, width = machine.flops * machine.decode_share, machine.bandwidth
        products = max(flops / speed, read / (width * machine.decode_share)) / devices
        other = machine.activation * shape.layers * shape.width * drawn
        prefill = shape.forward_flops(lengths.prompt, 0) * questions
        reading = prefill / (machine.flops * machine.train_share * devices)
        launching = passes * (machine.launch * shape.layers + machine.draw)
        seconds = products + other + reading + launching
        return Cost(
            seconds=seconds + machine.handling * requests,
            busy=seconds * devices,
            tokens=questions * lengths.prompt + written,
            flops=flops + prefill,
            written=requests * rollout_bytes(shape, lengths.response),
        )

    def aligned(self, condition: ConditionSettings, rollouts: int) -> Cost:
        """Critiques and contexts of a round."""
        experiment, context = self.experiment, condition.teacher_context
        cost = Cost()
        if context:
            size = rollouts * context_bytes(self.shape, self.lengths.shown)
            seconds = CONTEXT_HANDLING * self.machine.handling * rollouts
            cost += Cost(seconds=seconds, written=size)
        quoted = any(each.quotes_critique for each in experiment.shown_in(condition))
        if quoted or "regions" in condition.weighting.needs:
            cost += self.asked(rollouts, attempts=1)
        return cost

    def streamed(self, rollouts: int) -> float:
        """Share of a round's sampling in which a critic on servers has rollouts to judge.

        vLLM's servers finish them one by one, the engine of this process batch by batch.
        """
        critic = self.experiment.critic
        if critic is None or not critic.streams:
            return 0.0
        if self.experiment.engine.kind == "vllm":
            return 1.0
        return 1 - 1 / ceil(rollouts / self.rows)

    def hidden(self, sampled: float, aligned: float, trained: float) -> tuple[float, float]:
        """Seconds of aligning and of sampling in all that pass while the round before is trained.

        With `training.lag`, and a server. One that the run starts shares its devices with the
        trainer, so that both together take as long as one after the other; those of `engine.urls`
        have their own.

        Args:
            sampled: seconds of a round's sampling.
            aligned: that aligning adds to it.
            trained: of a round's training.
        """
        training, engine = self.experiment.training, self.experiment.engine
        if not training.lag or engine.kind != "vllm":
            return 0.0, 0.0
        waits = min(aligned, trained)
        samples = min(sampled, trained - waits) if engine.urls else 0.0
        return (training.rounds - 1) * waits, (training.rounds - 1) * samples

    def idle(self, waits: float, trains: float) -> float:
        """Seconds of a round in which servers have none of it to sample, and score its policy.

        Those of the run itself share its devices with the trainer, as in `hidden`.

        Args:
            waits: seconds in which the round waits for the critic.
            trains: seconds in which it is trained, and no other round sampled.
        """
        engine = self.experiment.engine
        if engine.kind != "vllm":
            return 0.0
        return waits + trains if engine.urls else waits

    def asked(self, requests: int, *, attempts: int) -> Cost:
        """Critiques; the second model of a cascade makes those that are refused by the first.

        It begins while the first is at work, but the last trace may be the one that is refused.
        """
        critic = self.experiment.critic
        if not (critic and critic.models):
            seconds = ORACLE_HANDLING * self.machine.handling * requests
            return Cost(seconds=seconds, written=CRITIQUE_BYTES * requests)
        left = [ceil(requests * REFUSED**place) for place in range(len(critic.models))]
        return total([
            self.answered(model, count, attempts)
            for model, count in zip(critic.models, left, strict=True)
        ])  # fmt: skip

    def tried(self, problems: int) -> Cost:
        """Problems of a band that the critic tries, the larger model of a cascade."""
        models = self.experiment.critic.models if self.experiment.critic else ()
        if not models:
            return self.asked(problems, attempts=1)
        return self.answered(models[-1], problems, attempts=1)

    def answered(self, model: LlmCriticConfig, requests: int, attempts: int) -> Cost:
        """Answers of a model, so many at a time; the slowest holds the last of them."""
        answer, waves = CRITIC_SHARE * model.max_tokens, ceil(requests / model.under_way)
        tokens = (waves - 1) * answer + (model.max_tokens if requests > 1 else answer)
        read = CRITIC_PROMPT + self.lengths.prompt + 2 * self.lengths.response
        critic_in, critic_out = attempts * requests * read, attempts * requests * answer
        return Cost(
            seconds=attempts * tokens / CRITIC_RATE,
            critic_in=critic_in,
            critic_out=critic_out,
            price=model.price(critic_in, critic_out),
            written=requests * (CRITIQUE_BYTES + 2 * answer),
        )

    def trained(self, step: Step) -> Cost:
        """An optimizer step, or a round of them."""
        machine, shape = self.machine, self.shape
        devices = machine.count
        products = step.flops / (machine.flops * machine.train_share * devices)
        other = machine.activation * shape.layers * shape.width * step.passes
        launching = 4 * machine.launch * shape.layers * step.batches
        seconds = products + other + launching
        return Cost(seconds, seconds * devices, step.tokens, step.flops)
