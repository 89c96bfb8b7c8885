"""The main flow: prepare, perhaps warm up, then per condition and seed a chain of rounds."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from prefect import flow

from flows.servers.own import without_heartbeats
from sdcore.config import Experiment
from sdcore.schedule import checkpoint_rounds
from tasks.align import align, has_work
from tasks.compare import compare
from tasks.difficulty import measure_difficulty
from tasks.distill import distill, finished_rounds
from tasks.evaluate import evaluate
from tasks.prepare import prepare
from tasks.run import progress
from tasks.run.interrupts import stop_if_asked
from tasks.run.lineage import Lineage, base_lineage
from tasks.run.lock import turn
from tasks.sample import sample
from tasks.track import start_tracking, track
from tasks.warmup import warm_up

SPLITS = ("validation", "test")


@flow(flow_run_name="{experiment.name}")
def compare_contexts(experiment: Experiment, root: Path) -> str:
    """Train the solver under every condition and seed of an experiment and compare the results.

    What the workspace folder `root` already holds is not done again, so an interrupted run goes on
    where it stopped. Returns the experiment's id.
    """
    base = base_lineage(experiment, root)
    with turn(base):
        ready(base, ("train", *SPLITS))
        for split in SPLITS:
            evaluate(base, 0, split)
        track(base)
    lineages = list(product(experiment.seeds, experiment.conditions))
    with (
        progress.bar(f"{experiment.name}: conditions x seeds", total=len(lineages)) as advance,
        without_heartbeats(),  # the main flow's tell as much
    ):
        for seed, condition in lineages:
            train_condition(experiment, root, condition, seed)
            advance(1)
    compare(base)
    return experiment.experiment_id


def ready(base: Lineage, splits: Sequence[str]) -> None:
    """What comes before the first rollout: the problems, in the band of these splits; a base."""
    prepare(base)
    start_tracking(base)
    if base.experiment.warmup:
        warm_up(base)
    if base.experiment.problems.band:
        for split in splits:
            measure_difficulty(base, split)


@flow(flow_run_name="{experiment.name}/{condition}/seed-{seed}")
def train_condition(experiment: Experiment, root: Path, condition: str, seed: int) -> None:
    """Train one condition with one seed: a chain of rounds, scored at its checkpoints."""
    lineage = Lineage(experiment, root, condition, seed)
    rounds = experiment.training.rounds
    with (
        turn(lineage),
        progress.bar(lineage.label, total=rounds, one_of_those_around=True) as advance,
    ):
        done = finished_rounds(lineage)
        advance(done)
        for checkpoint in checkpoint_rounds(experiment, lineage.settings):
            for round_ in range(done, checkpoint):
                train_round(lineage, round_)
                advance(1)
            done = max(done, checkpoint)
            for split in SPLITS:
                evaluate(lineage, checkpoint, split)
            track(lineage)


def train_round(lineage: Lineage, round_: int) -> None:
    """One round: the three stages, each a task run of its own."""
    sample(lineage, round_)
    stop_if_asked()
    if has_work(lineage, round_):
        align(lineage, round_)
    stop_if_asked()
    distill(lineage, round_)
    stop_if_asked()
