"""A vLLM server of our own: a process in vLLM's environment, on a socket, that ends when we do.

Nothing here imports vLLM; its environment is made by `make vllm`.
"""

import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch

from sdcore.config import EngineConfig
from sdcore.errors import EngineError, SdcoreError
from sdcore.keys import Key, redacted
from sdcore.models.folders import read_config
from sdcore.system import supervise
from sdcore.system.ports import answers

START_TIMEOUT = 900.0  # seconds; a large model loads and compiles for minutes
NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
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
    "VLLM_SERVER_DEV_MODE": "1",  # has the routes that change its weights; they ask for no key
}


class VllmServer:
    """Starts vLLM on a model folder, gives it the weights of others, and restarts it if it dies.

    It knows token ids only (no tokenizer is loaded) and keeps prefixes cached. It listens on a
    socket in a folder that no other user can enter, and nowhere else: many of vLLM's routes do not
    ask for the key. Those under /v1 do.

    Attributes:
        socket: where it listens, in every process that is started.
        url: stands for its address in a request; the socket decides where that goes.
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
        self._home = tempfile.TemporaryDirectory(prefix="sdcore-")  # of mode 0700
        self.socket = Path(self._home.name, "vllm")  # about 100 bytes at most: not in the workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None  # whose weights it has, wholly
        self._log_start = 0  # where the log of the present process starts
        self.key = Key(secrets.token_urlsafe(32))
        self.url = "http://vllm"

    def ensure(self, folder: Path) -> None:
        """Run the server on the weights of a folder.

        One that runs on others reads these, without its adapters and cached prefixes. It is
        restarted if it cannot, and if it has died. No request may be in flight.

        Raises:
            EngineError: it does not start.
        """
        runs = self._process is not None and self._process.poll() is None
        if runs and (self._folder == folder or self._reload(folder)):
            return
        self._stop()
        self._folder = folder
        self._process = self._started(folder)
        self._require_answer(self._process)

    def transport(self) -> httpx.HTTPTransport:
        """Return what takes a client's requests to the socket, as many at once as it likes."""
        return httpx.HTTPTransport(uds=str(self.socket), limits=NO_LIMITS)

    def close(self) -> None:
        """End the server for good, with all its processes; requests in flight fail."""
        self._stop()
        self._home.cleanup()

    def _reload(self, folder: Path) -> bool:
        """Have the running server read other weights; return False, and log why, if it cannot."""
        known, self._folder = self._folder, None  # a reload that is cut short leaves it on neither
        try:
            if known is None:
                raise EngineError("an earlier reload was cut short")
            require_reloadable(folder)
            bearer = {"Authorization": f"Bearer {self.key.text}"}
            with httpx.Client(
                base_url=self.url, transport=self.transport(), headers=bearer, timeout=START_TIMEOUT
            ) as client:
                reload_weights(client, folder)
        except (SdcoreError, httpx.HTTPError, OSError, ValueError, KeyError) as error:
            why = redacted(" ".join(f"{type(error).__name__}: {error}".split()), self.key)
            with self.log_path.open("a", encoding="utf-8") as log:
                log.write(f"sdcore restarts vLLM for the weights of {folder}: {why}\n")
            return False
        self._folder = folder
        return True

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(timeout=2 * supervise.GRACE)

    def _started(self, folder: Path) -> "subprocess.Popen[bytes]":
        python = self._settings.python.absolute()
        if not python.exists():
            raise EngineError(
                "vLLM's environment does not exist",
                got=str(python),
                fix="run `make vllm`, or name another environment in engine.python",
            )
        self.socket.unlink(missing_ok=True)  # vLLM leaves it, and does not start where one is
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
                start_new_session=True,  # Ctrl-C is for this process, which ends its batch with it
            )

    def _own_environment(self) -> dict[str, str]:
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)} if self._gpus else {}
        return gpus | {"VLLM_API_KEY": self.key.text}

    def _arguments(self, folder: Path) -> list[str]:
        """Arguments of vLLM's server (vllm-cpu 0.32 lacks the metadata that `vllm serve` reads)."""
        settings = self._settings
        chosen = {
            "--model": str(folder),
            "--uds": str(self.socket),
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
        if answers(f"{self.url}/health", process, START_TIMEOUT, transport=self.transport()):
            return
        self._stop()
        log = self.log_path.read_bytes()[self._log_start :].decode("utf-8", errors="replace")
        raise EngineError(
            "the vLLM server did not start",
            got=redacted(cause(log), self.key),
            expected=f"an answer from {self.socket} within {START_TIMEOUT:g} s",
            where=str(self.log_path),
            fix="see the log; engine.arguments are passed on to vLLM",
        )


def reload_weights(client: httpx.Client, folder: Path) -> None:
    """Replace a server's weights, and remove what belongs to the old ones.

    Those are its adapters and the keys and values of cached prefixes. A failure may leave the
    server with weights of both folders: it must not be sampled from then.

    Raises:
        EngineError: cached prefixes are in use.
        httpx.HTTPError: the server does not answer, or refuses.
    """
    for model in client.get("/v1/models").raise_for_status().json()["data"]:
        if model["parent"] is not None:
            name = {"lora_name": model["id"]}
            client.post("/v1/unload_lora_adapter", json=name).raise_for_status()
    read = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.absolute())}}
    client.post("/collective_rpc", json=read).raise_for_status()
    if not client.post("/reset_prefix_cache").raise_for_status().json()["success"]:
        raise EngineError("vLLM still uses keys and values of the old weights")


def require_reloadable(folder: Path) -> None:
    """Refuse weights that a running server would take only in part.

    On CPUs vLLM 0.32 multiplies by a packed copy of the head. A reload renews it where the folder
    holds a head; one that is tied to the embedding stays as it was, with no more than a warning.

    Raises:
        EngineError: vLLM runs on CPUs, and the head is tied.
        ModelError: config.json cannot be read.
    """
    if torch.cuda.is_available():
        return
    config = read_config(folder)
    if config.get("text_config", config).get("tie_word_embeddings", True):
        raise EngineError("on CPUs vLLM does not renew a head that is tied to the embedding")


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
