"""What a second worker brings on this machine, and what many would bring on GPUs, by simulation.

Measured: the quickstart's first seed with one worker and with two, in turns, in new workspaces; the
cores are shared out. Where Ray is installed, two rounds of it in one process and as tasks of Ray on
one core, in turns: what a condition and seed costs beside its training. Simulated: ten times the
paper's study (its conditions on thirty seeds) on 8, 64 and 512 H100s, from the stage times of
`sdcore plan` and in the order in which workers take conditions and seeds: with one GPU per worker,
and with vLLM servers that all workers share. Each worker has a critic's endpoint of its own.
Usage: scaling.py [dotted settings ...]
"""

import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path

from _measure import alternating, ratio, report, seconds

from flows.commands.plan import planned_on
from flows.servers.standing import PROJECT
from sdcore.config import load_experiment
from sdcore.planning.estimate import Plan
from sdcore.planning.machines import named
from sdcore.schedule import checkpoint_rounds

EXPERIMENTS = PROJECT / "deployments" / "experiments"
SEEDS = list(range(30))
DAY = 86_400
DEVICES = ("server", "trainer")
Steps = Iterator[tuple[str | None, float]]


def measured(*overrides: str) -> None:
    def run(workers: int) -> None:
        file = EXPERIMENTS / "quickstart.toml"
        command = [Path(sys.executable).with_name("sdcore"), "run", file, "--quick", *overrides]
        with tempfile.TemporaryDirectory() as folder:
            place = ["--workers", str(workers), "--workspace", folder]
            subprocess.run([*command, *place], check=True, capture_output=True)

    pairs = alternating(lambda: run(1), lambda: run(2), pairs=3)
    share = ratio(pairs)
    report("two workers on this machine", share, "below 1 of one worker's time", share < 1)


def on_ray(*overrides: str) -> None:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
    address = ray.get_runtime_context().gcs_address
    short = ["training.rounds=2", "evaluation.every=2", *overrides]

    def run(*where: str) -> None:
        file = EXPERIMENTS / "quickstart.toml"
        command = [Path(sys.executable).with_name("sdcore"), "run", file, "--quick", *short]
        with tempfile.TemporaryDirectory() as folder:
            there = [each.format(folder=folder) for each in where]
            place = ["--workspace", f"{folder}/workspace"]
            subprocess.run([*command, *there, *place], check=True, capture_output=True)

    places = [f"cluster.address={address}", "cluster.root={folder}/root"]
    pairs = [(seconds(run), seconds(lambda: run(*places))) for _ in range(2)]
    extra = statistics.median(spread - alone for alone, spread in pairs) / 3
    report(
        "Ray on this machine, seconds per condition and seed beside its training",
        extra,
        "at most 60",
        extra <= 60,
        seconds=[[round(each, 1) for each in pair] for pair in pairs],
    )
    ray.shutdown()


def with_own_gpus(workers: int) -> None:
    """Simulate the study with one GPU per worker, as `sdcore plan --workers` does."""
    study = load_experiment(EXPERIMENTS / "paper-1gpu.toml", [f"seeds={SEEDS}"])
    plan = planned_on(study, named("h100x1"))
    few = len(plan.lineages) < workers
    say(
        f"one worker on each of {workers} H100",
        plan.seconds_with(workers),
        plan.use_with(workers),
        bound=f"{len(plan.lineages)} conditions and seeds for {workers} workers" if few
        else plan.bound,
    )  # fmt: skip


def with_shared_servers(gpus: int) -> None:
    """Simulate the study with standing vLLM servers, and several workers on each other GPU.

    While one worker waits for its critic, others sample and train. A server answers one worker at a
    time here, and really all of them together. Of seven ways to share out the GPUs the best counts.
    """
    urls = ["engine.kind=vllm", "engine.urls=['http://server:8000']"]
    study = load_experiment(EXPERIMENTS / "paper-1gpu.toml", [f"seeds={SEEDS[:1]}", *urls])
    plans = [
        planned_on(study.model_copy(update={"conditions": {name: condition}}), named("h100x1"))
        for name, condition in study.conditions.items()
    ]
    fitting = int(plans[0].machine.memory / max(each.memory.total for each in plans))
    prepared, lineages = plans[0].stages["prepare"], len(SEEDS) * len(plans)

    def with_servers(servers: int) -> tuple[float, int, int]:
        workers = min(lineages, fitting * (gpus - servers))
        jobs = (steps(each) for _ in SEEDS for each in plans)
        trained = finished(jobs, workers, {"server": servers, "trainer": gpus - servers})
        return prepared.seconds + trained, servers, workers

    seconds, servers, workers = min(with_servers(gpus * part // 8) for part in range(1, 8))
    each = [(kind, taken) for plan in plans for kind, taken in steps(plan)]
    work = {kind: len(SEEDS) * sum(s for of, s in each if of == kind) for kind in DEVICES}
    bounds = {
        "the servers": work["server"] / servers,
        "the trainers": work["trainer"] / (gpus - servers),
        "the slowest condition and seed": max(sum(s for _, s in steps(plan)) for plan in plans),
        f"{workers} workers": len(SEEDS) * sum(s for _, s in each) / workers,
    }
    say(
        f"{servers} vLLM servers and {workers} workers on {gpus - servers} more H100",
        seconds,
        (prepared.busy + sum(work.values())) / (gpus * seconds),
        bound=max(bounds, key=lambda name: bounds[name]),
    )


def steps(plan: Plan) -> Steps:
    """The device and the seconds of each step of one condition and seed; None: its critic's."""
    rounds, stages = plan.experiment.training.rounds, plan.stages
    (condition,) = plan.experiment.conditions.values()
    scored = checkpoint_rounds(plan.experiment, condition)
    for number in range(1, rounds + 1):
        yield "server", stages["sample"].busy / rounds
        yield None, stages["align"].seconds / rounds
        yield "trainer", stages["distill"].seconds / rounds
        if number in scored:
            yield "server", stages["evaluate"].busy / (len(scored) + 1)  # the base's is in it


def finished(jobs: Iterable[Steps], workers: int, devices: Mapping[str, int]) -> float:
    """Return the seconds until all jobs are done.

    Args:
        jobs: their steps; a step waits until one of its devices is free, and first come is first
            served.
        workers: jobs at a time; the next one begins when one ends.
        devices: how many there are of each kind.
    """
    left, free = iter(jobs), dict(devices)
    waiting = {kind: deque[tuple[float, Steps]]() for kind in devices}
    events, order, now = list[tuple[float, int, str | None, Steps]](), count(), 0.0

    def begin(kind: str | None, seconds: float, job: Steps) -> None:
        heappush(events, (now + seconds, next(order), kind, job))

    def go_on(job: Steps | None) -> None:
        while job is not None:
            for kind, taken in job:
                if kind is None or free[kind]:
                    if kind is not None:
                        free[kind] -= 1
                    begin(kind, taken, job)
                else:
                    waiting[kind].append((taken, job))
                return
            job = next(left, None)

    for job in list(islice(left, workers)):
        go_on(job)
    while events:
        now, _, kind, job = heappop(events)
        if kind is not None and waiting[kind]:
            begin(kind, *waiting[kind].popleft())
        elif kind is not None:
            free[kind] += 1
        go_on(job)
    return now


def say(where: str, seconds: float, use: float, **more: str) -> None:
    report(
        f"ten times the paper's study, {where}",
        seconds / DAY,
        "at most 5 days, at 0.4 use or more",
        seconds <= 5 * DAY and use >= 0.4,
        use=round(use, 3),
        **more,
    )


if __name__ == "__main__":
    for gpus in (8, 64, 512):
        with_own_gpus(gpus)
        with_shared_servers(gpus)
    measured(*sys.argv[1:])
    if find_spec("ray"):
        on_ray(*sys.argv[1:])
