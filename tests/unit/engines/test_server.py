"""What a vLLM server of our own is started with."""

import json
import sys

import pytest

from sdcore.config import EngineConfig
from sdcore.engines.server import VllmServer
from sdcore.errors import EngineError

ECHO = """#!{python}
import json, os, sys
seen = {{"arguments": sys.argv[1:], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}}
open({path!r}, "w").write(json.dumps(seen))
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start a server whose interpreter writes down what it was started with, and ends."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    seen, program = tmp_path / "seen.json", tmp_path / "python"
    program.write_text(ECHO.format(python=sys.executable, path=str(seen)))
    program.chmod(0o755)

    def start(settings, **more):
        config = EngineConfig(kind="vllm", python=program, **settings)
        log = tmp_path / "log"
        server = VllmServer(config, dtype="bfloat16", lora_rank=4, log_path=log, **more)
        with pytest.raises(EngineError, match="did not start"):
            server.ensure(tmp_path)
        found = json.loads(seen.read_text())
        return found["arguments"], found["gpus"]

    return start


def value(arguments, name):
    return arguments[arguments.index(name) + 1]


def test_it_sees_its_gpus_alone_and_asks_for_its_part_of_them(started):
    sized = {"cache_gib": 2.5, "context_length": 4096}
    arguments, gpus = started(sized, gpus=("GPU-b",), share=0.432)
    assert gpus == "GPU-b"
    assert value(arguments, "--gpu-memory-utilization") == "0.432"
    assert value(arguments, "--kv-cache-memory-bytes") == str(5 * 2**29)
    assert value(arguments, "--max-model-len") == "4096"


def test_what_is_not_given_is_left_to_vllm(started):
    arguments, gpus = started({"arguments": ["--gpu-memory-utilization=0.3"]})
    assert gpus == "GPU-a,GPU-b" and arguments[-1] == "--gpu-memory-utilization=0.3"
    left_out = {"--gpu-memory-utilization", "--kv-cache-memory-bytes", "--max-model-len"}
    assert not left_out & set(arguments)
