"""The main flow: prepare, perhaps warm up, then per condition and seed a chain of rounds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ExternalSignal
from prefect.futures import PrefectFuture, wait

from flows.cluster import train_on_cluster
from sdcore.config import Experiment
from sdcore.schedule import checkpoint_rounds
from tasks.align import align, has_work, streams
from tasks.compare import compare
from tasks.difficulty import measure_difficulty
from tasks.distill import distill
from tasks.evaluate import SPLITS, evaluate, splits_of
from tasks.growth import grown
from tasks.health import stopped
from tasks.maintenance.restore import restore
from tasks.prepare import prepare
from tasks.run.condition_run import ConditionRun, base_run, trained_runs
from tasks.run.lock import done_if_free, run_lock
from tasks.run.progress import Advance
from tasks.run.rounds import Round, first_round
from tasks.run.servers import say_gpus
from tasks.run.session import Session
from tasks.run.workers import workers_beside
from tasks.sample import sample
from tasks.sweep import choose, chosen
from tasks.track import end_run, track, tracked
from tasks.warmup import warm_up


@dataclass(frozen=True)
class Finished:
    """A run that came to its end, and where its time went (seconds by kind)."""

    experiment_id: str
    seconds: dict[str, float]


@flow(flow_run_name="{experiment.name}")
def compare_contexts(experiment: Experiment, root: Path, workers: int = 1) -> Finished:
    """Train the solver under every condition and seed of an experiment and compare the results.

    What the workspace folder `root` already holds is not done again, so an interrupted run goes on
    where it stopped. Several processes may run the same experiment in one workspace: each takes
    conditions and seeds that are free. The rows are those of a single process with as many threads
    (torch's sums depend on these in their last bits).

    Args:
        experiment: its settings.
        root: folder of the workspace.
        workers: processes that train, this one included.
    """
    workers = min(workers, len(experiment.conditions) * len(experiment.seeds))
    with Session(root, workers=workers) as session:
        base = base_run(session, experiment)
        if experiment.cluster is None:
            say_gpus(experiment, workers)
        with run_lock(base, wait=True):
            prepare(base)
        base = grown(base)
        with tracked(base):
            with run_lock(base, wait=True):
                make_ready(base, ("train", *SPLITS))
                for split in SPLITS:
                    evaluate(base, base.policy(0), split)
                track(base)
            base = train(base)
            with run_lock(base, wait=True):
                for run in chosen_runs(base):
                    score_on_test(run)
                compare(base)
        return Finished(experiment.experiment_id, session.clock.split())


def train(base: ConditionRun) -> ConditionRun:
    """Train all conditions and seeds, and what the run gains meanwhile.

    It gains further trials while the best is at the edge of a grid, and what another process adds.

    Returns:
        The run with all of them.
    """
    trained = set[str]()
    while runs := [run for run in trained_runs(base) if run.label not in trained]:
        title = f"{base.experiment.name}: conditions x seeds"
        if base.experiment.cluster is not None:
            train_on_cluster(runs, title)
        else:
            with workers_beside(base, max(1, min(base.session.workers, len(runs))) - 1):
                train_in_turn(runs, train_condition, title)
        trained |= {run.label for run in runs}
        if base.experiment.trials:
            with run_lock(base, wait=True):
                choose(base)
        base = grown(base)
    return base


def train_in_turn(
    runs: Sequence[ConditionRun], work: Callable[[ConditionRun], object], title: str
) -> None:
    """Do the work on each run, first on those that no other process holds, until all is done.

    What another process has finished is found stored; what it leaves undone is done here.

    Args:
        runs: conditions and seeds of one session.
        work: what is done on one of them, whose lock is held.
        title: of the progress bar.
    """
    left = list(runs)
    if not left:
        return
    session = left[0].session
    with session.panel.bar(title, total=len(left)) as advance:
        while left:
            session.interrupts.stop_if_asked()
            done = next((run for run in left if done_if_free(run, work)), None)
            if done is None:
                done = left[0]
                with run_lock(done, wait=True):
                    work(done)
            left.remove(done)
            advance(1)


def chosen_runs(base: ConditionRun) -> list[ConditionRun]:
    """The runs of the trials that stand for their conditions."""
    experiment = base.experiment
    return [
        ConditionRun(base.session, experiment, trial, seed)
        for seed, trial in product(experiment.seeds, chosen(base))
    ]


def make_ready(base: ConditionRun, splits: Sequence[str]) -> None:
    """Prepare the first rollout: a base policy, and the problems of the band."""
    if base.experiment.warmup:
        warm_up(base)
    if base.experiment.problems.band:
        for split in splits:
            measure_difficulty(base, split)


def train_condition(run: ConditionRun) -> None:
    """Train one condition with one seed: a chain of rounds, scored at its checkpoints.

    It ends early, at the last good policy, where a sign of `health.stop_when` says so. A trial of a
    sweep is scored on validation only.
    """
    rounds = run.experiment.training.rounds
    with run.session.panel.bar(run.label, total=rounds, part=True) as advance:
        restore(run)
        good = stopped(run)
        if good is None:
            good = _train_rounds(run, advance)
        if good:
            restore(run)  # its checkpoint was not needed before
            _score(run, good, splits_of(run))
        end_run(run)


def _train_rounds(run: ConditionRun, advance: Advance) -> int | None:
    """Train to the end, or until the run is stopped: the rounds behind its last good policy."""
    rounds, due = run.experiment.training.rounds, checkpoint_rounds(run.experiment, run.settings)
    round_ = first_round(run)
    advance(round_.number)
    for checkpoint in due:
        if checkpoint < round_.number:  # perhaps not scored before the run was cut short
            _score(run, checkpoint, splits_of(run))
    while round_.number < rounds:
        with scored_beside(round_) if round_.number in due else nullcontext():
            round_ = train_round(round_, rounds)
        advance(1)
        good = stopped(run)
        if good is not None:
            return good
    _score(run, rounds, splits_of(run))
    return None


def score_on_test(run: ConditionRun) -> None:
    """Score a chosen trial on test, at the checkpoints that were scored on validation."""
    good = stopped(run)
    scores = run.store.rows("scores", split="validation", **run.columns)
    with run_lock(run, wait=True):
        for round_ in sorted(scores["round"]):
            if good is None or round_ <= good:
                if not run.checkpoint(round_).is_dir():
                    restore(run, [round_])  # it was pruned while another trial was chosen
                _score(run, round_, ["test"])


def _score(run: ConditionRun, round_: int, splits: Sequence[str]) -> None:
    for split in splits:
        evaluate(run, run.policy(round_), split)
    track(run)


def train_round(round_: Round, until: int) -> Round:
    """One round: the three stages, each a task run of its own. Returns the next round.

    Args:
        round_: with its rollouts and contexts, if it was made beside the one before.
        until: rounds that are trained in all. With `training.lag` the next round is made here too,
            if it is one of them.
    """
    run = round_.run
    with round_.kept():
        if not round_.rollouts:
            make(round_)
        if run.experiment.training.lag and round_.number + 1 < until:
            with made_beside(round_.ahead()):
                distill(round_)
        else:
            distill(round_)
    run.session.interrupts.stop_if_asked()
    return round_.next()


def make(round_: Round) -> None:
    """Sample a round, and build its contexts."""
    stop_if_asked = round_.run.session.interrupts.stop_if_asked
    with aligned(round_):
        sample(round_)
        stop_if_asked()
    stop_if_asked()


@contextmanager
def aligned(round_: Round) -> Iterator[None]:
    """Align what the block samples: after it, or meanwhile if the critic is on servers."""
    if not has_work(round_):
        yield
    elif not streams(round_):
        yield
        align(round_)
    else:
        with awaited(round_.run, align.submit(round_, return_state=False)):
            try:
                yield
            finally:
                round_.arrived.end()


@contextmanager
def made_beside(following: Round) -> Iterator[None]:
    """Make a round while the block trains the one before it, if the engine is a server.

    An engine in this process has the weights that training changes: there the round is made first.
    """
    models, sampler = following.run.session.models, following.sampler
    engine = models.engine(following.run, sampler.round, sampler.policy_id)
    if not engine.reads_folders:
        make(following)
        yield
        return
    with awaited(following.run, make_ahead.submit(following, return_state=False)):
        yield


@contextmanager
def scored_beside(round_: Round) -> Iterator[None]:
    """Score a round's policy while the block trains it, if the engine is a server.

    The policy is scored first if the engine is in this process, or if it needs older weights for
    the round: with `training.lag`, where the run was cut short before that was sampled.
    """
    run, policy, models = round_.run, round_.policy, round_.run.session.models
    sampled_from_it = round_.rollouts or round_.sampler == policy
    if not (models.sampler(run).reads_folders and sampled_from_it):
        _score(run, policy.round, splits_of(run))
        yield
        return
    models.engine(run, policy.round, policy.policy_id)  # loads it before any of the tasks asks
    scores = [evaluate.submit(run, policy, split, return_state=False) for split in splits_of(run)]
    with awaited(run, *scores):
        yield
    track(run)


@contextmanager
def awaited(run: ConditionRun, *futures: PrefectFuture[Any]) -> Iterator[None]:
    """Wait for a run's tasks at the block's end, also if it fails; raise what they raised.

    When a signal is to end the process, which Prefect raises here, they stop as after Ctrl-C.
    """
    try:
        yield
    except ExternalSignal:
        run.session.interrupts.request()
        raise
    finally:
        try:
            wait(list(futures))
        except ExternalSignal:
            run.session.interrupts.request()
            wait(list(futures))
            raise
    for future in futures:
        future.result()


@task(cache_policy=NO_CACHE, task_run_name="make {round_.label}")
def make_ahead(round_: Round) -> None:
    """Make a round beside the training of the one before it."""
    make(round_)
