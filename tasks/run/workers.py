"""Processes that train conditions and seeds of a run beside the one that started it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from prefect.settings import get_current_settings

from sdcore.errors import ConfigError
from sdcore.system.supervise import die_with_parent
from sdcore.system.threads import torch_threads
from tasks.run.condition_run import ConditionRun
from tasks.run.interrupts import Stopped
from tasks.run.progress import note
from tasks.run.servers import placements_here


@contextmanager
def workers_beside(base: ConditionRun, count: int) -> Iterator[None]:
    """Let `count` further processes work on the experiment while the block runs.

    They are as many as the session's workers without this one, or fewer.

    Each is `python -m flows.worker`: it takes conditions and seeds that are free, and ends when
    none is left. The processor's cores are shared out evenly. What a worker that fails leaves
    undone is taken by this process, which meets the same error and raises it.

    Raises:
        ConfigError: torchrun started this process, whose ranks train one condition together.
    """
    if not count:
        yield
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            "torchrun's processes train one condition together",
            got=f"{count + 1} workers",
            expected="one worker",
            fix="leave out --workers, or torchrun",
        )
    threads = max(1, torch.get_num_threads() // (count + 1))
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
        file = Path(folder, "experiment.json")
        file.write_text(base.experiment.model_dump_json(), "utf-8")
        workers = [_start(base, file, number, threads) for number in range(2, count + 2)]
        try:
            yield
            for worker in workers:
                worker.wait()
        except BaseException as error:
            # As after Ctrl-C each worker ends its own batch; the session's watch bounds the wait.
            wanted = signal.SIGINT if isinstance(error, Stopped) else signal.SIGTERM
            for worker in workers:
                worker.send_signal(wanted)
            for worker in workers:
                worker.wait()
            raise
    for number, worker in enumerate(workers, 2):
        if worker.returncode:
            note(f"worker {number} failed; {_log(base, number)} says why")


def _start(
    base: ConditionRun, experiment: Path, number: int, threads: int
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flows.worker", str(experiment), str(base.root), str(number)]
    environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
    environment |= {"OMP_NUM_THREADS": str(threads)} | _gpus(base, number)
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    with _log(base, number).open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it gets Ctrl-C from this process, and once
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls the kernel only
        )


def _gpus(base: ConditionRun, number: int) -> dict[str, str]:
    """Return the variable that gives a worker its GPUs; this process is number 1."""
    placed = placements_here(base.experiment, base.session.workers)[number - 1]
    return {"CUDA_VISIBLE_DEVICES": ",".join(placed.visible)} if placed.visible else {}


def _log(base: ConditionRun, number: int) -> Path:
    return base.root / f"worker-{number}.log"
