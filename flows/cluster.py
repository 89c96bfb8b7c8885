"""Trains conditions and seeds on the nodes of a running Ray cluster: one task of Ray each.

Ray decides where, and so holds the leases; what it starts ends with this process. Rows do not
travel through Ray: see `tasks.cluster`.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import sdcore
from flows.node import train_here
from sdcore.config import ClusterConfig
from sdcore.errors import ConfigError, SdcoreError
from sdcore.store.parts import Folder, open_folder
from tasks.cluster.attempts import close, merge, open_attempt
from tasks.evaluate import is_trained
from tasks.run.checkpoints import damaged_checkpoints
from tasks.run.condition_run import ConditionRun
from tasks.run.interrupts import Stopped
from tasks.run.lock import run_lock
from tasks.run.progress import note
from tasks.track import end_run, log_run

LOOK = 1.0  # seconds between two looks whether Ctrl-C was pressed or a node is done
MERGE = 5.0  # seconds between two merges of what the nodes have sent
ATTEMPTS = 3  # in a row that may end without having sent anything
STOPPING = 25.0  # seconds that nodes have to end the batch at work; the session's watch has 30


class Job:
    """One condition and seed, at work on some node.

    Attributes:
        run: the condition and seed.
        fruitless: attempts in a row that were lost before they had sent anything.
    """

    def __init__(self, run: ConditionRun, root: Folder) -> None:
        self.run, self._root, self.fruitless = run, root, 0
        self._attempt = open_attempt(run, root)

    def start(self, remote: Any) -> Any:
        """Hand it to Ray; returns Ray's reference to the result."""
        run, settings = self.run, self.run.experiment.model_dump_json()
        return remote.remote(
            sdcore.__version__, settings, run.condition, run.seed, self._attempt.path
        )

    def merge(self) -> None:
        """Store what has been sent."""
        for part in merge(self.run, self._attempt):
            self.fruitless = 0
            for row in part.frames["scores"].to_dicts() if "scores" in part.frames else ():
                note(
                    f"{self.run.label} after {row['round']} rounds: {row['split']} "
                    f"avg@{row['k']} {row['avg_at_k']:.1%}"
                )

    def lost(self, reason: Exception) -> None:
        """Prepare another attempt: the node, or the process on it, is gone.

        Raises:
            SdcoreError: it was lost several times without having sent anything.
        """
        self.fruitless += 1
        self.merge()
        if self.fruitless >= ATTEMPTS:
            raise SdcoreError(
                f"{self.run.label} was lost {ATTEMPTS} times in a row, without a row from it",
                got=reason,
                fix="Ray's logs say why (`ray logs`): too little memory is the commonest reason; "
                "then the same command goes on",
            ) from reason
        note(f"{self.run.label} was lost, and goes on elsewhere: {str(reason).splitlines()[0]}")
        self._attempt = open_attempt(self.run, self._root)

    def finish(self) -> None:
        """Bring home what the node has made.

        Raises:
            SdcoreError: rows or checkpoints are missing.
        """
        self.merge()
        close(self.run, self._root)
        if not is_trained(self.run) or damaged_checkpoints(self.run):
            raise SdcoreError(
                "rows or checkpoints of a trained condition and seed did not arrive",
                got=self.run.label,
                where=self._root.path,
                fix="see that no other workspace has the same cluster.root; then the same command "
                "makes what is missing",
            )
        log_run(self.run)
        end_run(self.run)


def train_on_cluster(runs: Sequence[ConditionRun], title: str) -> None:
    """Train conditions and seeds on the nodes of their experiment's cluster, until all are trained.

    When a node dies, what it has sent is stored, and another one goes on from there. An error of
    sdcore's own ends all of them, and is raised here.

    Args:
        runs: conditions and seeds of one session.
        title: of the progress bar.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
        SdcoreError: a node's own error, or a condition and seed that is lost again and again.
    """
    session, cluster = runs[0].session, runs[0].experiment.cluster
    assert cluster is not None, "the experiment has a cluster"
    root = open_folder(cluster.root)
    session.forget_models()  # this machine's GPU may be one of the cluster's
    with ExitStack() as stack:
        advance = stack.enter_context(session.panel.bar(title, total=len(runs)))
        for run in runs:
            stack.enter_context(run_lock(run, wait=True))
        left = [run for run in runs if not is_trained(run) or damaged_checkpoints(run)]
        advance(len(runs) - len(left), cached=len(runs) - len(left))
        if not left:
            return
        ray = stack.enter_context(_connected(cluster))
        remote = ray.remote(**_resources(ray, cluster))(train_here)
        jobs = [Job(run, root) for run in left]
        at_work = {job.start(remote): job for job in jobs}
        try:
            for job in _finished(ray, remote, at_work):
                job.finish()
                advance(1)
        except BaseException as error:
            _stop(ray, list(at_work), force=not isinstance(error, Stopped))
            for job in jobs:
                job.merge()
            raise


def _finished(ray: Any, remote: Any, at_work: dict[Any, Job]) -> Iterator[Job]:
    """Give each job when it is done, merge what the others send, and replace lost ones."""
    merged = time.monotonic()
    while at_work:
        done, _ = ray.wait(list(at_work), timeout=LOOK)
        next(iter(at_work.values())).run.session.interrupts.stop_if_asked()
        for reference in done:
            job = at_work.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise  # of Python: another node would meet it too
            except ray.exceptions.RayError as reason:
                job.lost(reason)
                at_work[job.start(remote)] = job
                continue
            if error is not None:
                raise error
            yield job
        if time.monotonic() - merged > MERGE:
            for job in at_work.values():
                job.merge()
            merged = time.monotonic()


def _stop(ray: Any, references: list[Any], *, force: bool) -> None:
    """End tasks, at once or after the batch at work."""
    for reference in references:
        ray.cancel(reference, force=force)
    if references:
        ray.wait(references, num_returns=len(references), timeout=STOPPING)


@contextmanager
def _connected(cluster: ClusterConfig) -> Iterator[Any]:
    """Connect to the cluster for as long as the block runs; gives the library Ray."""
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed", where="cluster", fix="pip install 'sdcore[ray]', on every node"
        ) from error
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("torchrun's processes train on this machine", fix="leave out torchrun")
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "no Ray cluster answers",
            got=error,
            where=f"cluster.address = {cluster.address}",
            fix="start it with `ray start --head`, and start the run on one of its nodes",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _resources(ray: Any, cluster: ClusterConfig) -> dict[str, Any]:
    """Options of a task: what it needs, a process of its own, and no retries behind our back."""
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= cluster.cpus and n.get("GPU", 0) >= gpus for n in nodes):
        note(f"waiting: no node of the cluster has {cluster.cpus} cores and {gpus:g} GPUs")
    return {"num_cpus": cluster.cpus, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
