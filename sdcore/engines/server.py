"""A vLLM server of our own: a process in vLLM's environment, on loopback, that ends when we do.

Nothing here imports vLLM; its environment is made by `make vllm`.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sdcore.config import EngineConfig
from sdcore.errors import EngineError
from sdcore.keys import Key, redacted
from sdcore.system import supervise
from sdcore.system.ports import answers, free_port

START_TIMEOUT = 900.0  # seconds; a large model loads and compiles for minutes
ERROR = re.compile(r"\b\w*(Error|Exception): ")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
CPU_FLAGS = (
    "--no-enable-chunked-prefill",  # with seeds it crashes vLLM 0.32 on CPUs
    "--enforce-eager",  # compiling takes minutes there, and its cache cannot be read back
)
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # models are local folders by now
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # the process that asks only waits
}


class VllmServer:
    """Starts vLLM on a model folder, and again on another one or when it has died.

    It knows token ids only (no tokenizer is loaded), keeps prefixes cached, and answers only to
    the key that it was started with. It keeps its port when it is started again.

    Attributes:
        url: its address.
        key: what it wants as bearer token.
        log_path: the file that its output is appended to.

    Args:
        settings: the environment's python, context length, memory, further arguments. A cache
            size that is not set is left to vLLM.
        dtype: float32 or bfloat16.
        lora_rank: rank of the adapters it is to serve; None for none.
        log_path: see above.
        gpus: that it may use, by their names in CUDA_VISIBLE_DEVICES; none: those of this process.
        share: part of each GPU that has to be free for it; None: vLLM's 92 %.
    """

    def __init__(
        self,
        settings: EngineConfig,
        *,
        dtype: str,
        lora_rank: int | None,
        log_path: Path,
        gpus: Sequence[str] = (),
        share: float | None = None,
    ) -> None:
        self._settings, self._dtype, self._lora_rank = settings, dtype, lora_rank
        self._gpus, self._share = tuple(gpus), share
        self.log_path = log_path
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._log_start = 0  # where the log of the present process starts
        self.key = Key(secrets.token_urlsafe(32))
        self.url = f"http://127.0.0.1:{self._port}"

    def ensure(self, folder: Path) -> None:
        """Run the server on the weights of a folder; restart it if it runs on others or has died.

        Raises:
            EngineError: it does not start.
        """
        if self._process is not None and self._process.poll() is None and self._folder == folder:
            return
        self.stop()
        self._folder = folder
        self._process = self._started(folder)
        self._require_answer(self._process)

    def stop(self) -> None:
        """End the server and all its processes."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=2 * supervise.GRACE)
            self._process = None

    def _started(self, folder: Path) -> "subprocess.Popen[bytes]":
        python = self._settings.python.absolute()
        if not python.exists():
            raise EngineError(
                "vLLM's environment does not exist",
                got=str(python),
                fix="run `make vllm`, or name another environment in engine.python",
            )
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        watch = [sys.executable, "-I", supervise.__file__, str(os.getpid())]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                [*watch, str(python), *self._arguments(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT | os.environ | self._own_environment(),
            )

    def _own_environment(self) -> dict[str, str]:
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)} if self._gpus else {}
        return gpus | {"VLLM_API_KEY": self.key.text}

    def _arguments(self, folder: Path) -> list[str]:
        """Arguments of vLLM's server (vllm-cpu 0.32 lacks the metadata that `vllm serve` reads)."""
        settings = self._settings
        chosen = {
            "--model": str(folder),
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--dtype": self._dtype,
            "--generation-config": "vllm",  # no sampling defaults from the model's folder
            "--max-num-seqs": str(settings.concurrency),
        }
        if settings.cache_gib is not None:
            chosen["--kv-cache-memory-bytes"] = str(int(settings.cache_gib * 2**30))
        if self._share is not None:
            chosen["--gpu-memory-utilization"] = f"{self._share:g}"
        if settings.context_length is not None:
            chosen["--max-model-len"] = str(settings.context_length)
        flags = ["--skip-tokenizer-init", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
        if not torch.cuda.is_available():
            flags += CPU_FLAGS
        if self._lora_rank is not None:
            flags.append("--enable-lora")
            chosen["--max-lora-rank"] = str(kernel_rank(self._lora_rank))
        pairs = [part for pair in chosen.items() for part in pair]
        return ["-m", "vllm.entrypoints.openai.api_server", *pairs, *flags, *settings.arguments]

    def _require_answer(self, process: "subprocess.Popen[bytes]") -> None:
        if answers(f"{self.url}/health", process, START_TIMEOUT):
            return
        self.stop()
        log = self.log_path.read_bytes()[self._log_start :].decode("utf-8", errors="replace")
        raise EngineError(
            "the vLLM server did not start",
            got=redacted(cause(log), self.key),
            expected=f"an answer from {self.url} within {START_TIMEOUT:g} s",
            where=str(self.log_path),
            fix="see the log; engine.arguments are passed on to vLLM",
        )


def kernel_rank(rank: int) -> int:
    """Return the smallest LoRA rank with vLLM kernels that holds adapters of this rank.

    Raises:
        EngineError: there is none.
    """
    fitting = [each for each in LORA_RANKS if each >= rank]
    if not fitting:
        raise EngineError(
            "vLLM does not serve adapters of this rank", got=rank, expected=f"<= {LORA_RANKS[-1]}"
        )
    return fitting[0]


def cause(log: str, lines: int = 3) -> str:
    """Return why a server ended: the first error in its log, else the log's last lines."""
    found = log.splitlines()
    errors = [i for i, line in enumerate(found) if ERROR.search(line) and "WARNING" not in line]
    start = errors[0] if errors else max(0, len(found) - lines)
    return "\n".join(line[:250] for line in found[start : start + lines])
