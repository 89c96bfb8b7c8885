"""What a second worker brings on this machine, and what many would bring on GPUs, by simulation.

Measured: the quickstart's first seed with one worker and with two, in turns, in new workspaces; the
cores are shared out. Where Ray is installed, two rounds of it in one process and as tasks of Ray on
one core, in turns: what a condition and seed costs beside its training. Simulated: ten times the
paper's study (its conditions on thirty seeds) on 8, 64 and 512 H100s, one GPU per worker, by
`sdcore plan` and in the order in which workers take conditions and seeds. Each worker has a
critic's endpoint of its own.
Usage: scaling.py [dotted settings ...]
"""

import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from _measure import alternating, ratio, report, seconds

from flows.commands.plan import planned_on
from flows.servers.standing import PROJECT
from sdcore.config import load_experiment

EXPERIMENTS = PROJECT / "deployments" / "experiments"
SEEDS = list(range(30))
DAY = 86_400


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


def simulated(workers: int) -> None:
    study = load_experiment(EXPERIMENTS / "paper-1gpu.toml", [f"seeds={SEEDS}"])
    plan = planned_on(study, "h100x1")
    seconds = plan.seconds_with(workers)
    use = plan.use_with(workers)
    alone = plan.whole.seconds - sum(plan.lineages)
    few = len(plan.lineages) < workers
    report(
        f"ten times the paper's study on {workers} H100",
        seconds / DAY,
        "at most 5 days, at 0.4 use or more",
        seconds <= 5 * DAY and use >= 0.4,
        use=round(use, 3),
        bound=f"{len(plan.lineages)} conditions and seeds for {workers} workers" if few
        else plan.bound,
        alone=round(alone / seconds, 4),
    )  # fmt: skip


if __name__ == "__main__":
    for count in (8, 64, 512):
        simulated(count)
    measured(*sys.argv[1:])
    if find_spec("ray"):
        on_ray(*sys.argv[1:])
