"""A vLLM server of our own: its arguments, new weights without a restart, who can reach it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sdcore.config import EngineConfig, SamplingConfig
from sdcore.engines import Request, Served, server
from sdcore.engines.endpoint import Endpoint
from sdcore.engines.server import VllmServer
from sdcore.engines.vllm import VllmEngine
from sdcore.errors import EngineError
from sdcore.system import supervise
from tests.helpers import fake_vllm

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
        server.close()
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


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An engine on a server of our own that runs the fake of vLLM, on CPUs."""
    monkeypatch.setattr(server.torch.cuda, "is_available", lambda: False)
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n" + Path(fake_vllm.__file__).read_text())
    program.chmod(0o755)
    log = tmp_path / "log"
    running = VllmServer(
        EngineConfig(kind="vllm", python=program), dtype="float32", lora_rank=4, log_path=log
    )
    endpoint = Endpoint(running.url, running.key, running)
    engine = VllmEngine([endpoint], end_ids=[2], concurrency=4)

    def model(name, token, *, tied=False):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "token").write_text(str(token))
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        return folder

    def sample(folder, base=None):
        engine.load(Served(folder.name, folder, base or folder))
        drawn = engine.generate([Request((5,), 0), Request((6,), 0)], SamplingConfig())
        return [completion.token_ids[0] for completion in drawn]

    def fail(**faults):
        (tmp_path / "faults.json").write_text(json.dumps({f"/{k}": v for k, v in faults.items()}))

    def said(start):
        return [line for line in log.read_text().splitlines() if line.startswith(start)]

    yield SimpleNamespace(server=running, engine=engine, model=model, sample=sample, fail=fail,
                          said=said)  # fmt: skip
    engine.close()


def test_new_weights_are_read_without_a_restart_and_nothing_of_the_old_is_left(own):
    one, other = own.model("one", 11), own.model("other", 22)
    assert own.sample(one) == own.sample(one) == [11, 11]
    own.sample(fake_vllm.adapter_of(one, "p1"), base=one)
    assert own.sample(other) == [22, 22]  # the prompts are in the prefix cache, with 11
    asked = [line for line in own.said("asked") if "/v1/completions" not in line]
    rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(other)}}
    assert asked[-3:] == [
        'asked /v1/unload_lora_adapter {"lora_name": "p1"}',
        f"asked /collective_rpc {json.dumps(rpc)}",
        "asked /reset_prefix_cache {}",
    ]
    assert own.sample(one) == [11, 11]
    assert len(own.said("Started")) == 1 and not own.said("sdcore")


def test_an_adapter_is_loaded_again_after_its_base_was_exchanged(own):
    one, other = own.model("one", 11), own.model("other", 22)
    adapter = fake_vllm.adapter_of(one, "p1")
    own.sample(adapter, base=one)
    assert own.sample(adapter, base=other) == [22, 22]
    assert len(own.said("asked /v1/load_lora_adapter")) == 2 and len(own.said("Started")) == 1


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"collective_rpc": 500}, "500"),
        ({"collective_rpc": "exit"}, "disconnected"),
        ({"reset_prefix_cache": 404}, "404"),
        ({"reset_prefix_cache": {"success": False}}, "keys and values of the old weights"),
        ({"v1/unload_lora_adapter": 400}, "400"),
    ],
)
def test_a_reload_that_fails_ends_in_a_restart_and_the_log_says_why(own, fault, why):
    one, other = own.model("one", 11), own.model("other", 22)
    own.sample(fake_vllm.adapter_of(one, "p1"), base=one)
    own.fail(**fault)
    assert own.sample(other) == [22, 22]
    (note,) = own.said("sdcore")
    assert f"restarts vLLM for the weights of {other}: " in note and why in note
    assert len(own.said("Started")) == 2


@pytest.mark.parametrize(("gpu", "starts"), [(False, 2), (True, 1)])
def test_a_tied_head_needs_a_restart_on_cpus(own, monkeypatch, gpu, starts):
    monkeypatch.setattr(server.torch.cuda, "is_available", lambda: gpu)
    one, other = own.model("one", 11, tied=True), own.model("other", 22, tied=True)
    assert own.sample(one) == [11, 11] and own.sample(other) == [22, 22]
    assert len(own.said("Started")) == starts
    assert ["a head that is tied" in note for note in own.said("sdcore")] == [True] * (starts - 1)


@pytest.mark.parametrize("config", ["{}", '{"text_config": {"tie_word_embeddings": true}}', "{"])
def test_a_config_that_does_not_say_that_the_head_is_separate_needs_a_restart(own, config):
    one, other = own.model("one", 11), own.model("other", 22)
    (other / "config.json").write_text(config)
    assert own.sample(one) == [11, 11] and own.sample(other) == [22, 22]
    assert len(own.said("Started")) == 2


def test_weights_that_were_half_read_are_not_sampled_from(own, monkeypatch):
    """The reload is interrupted; the next policy is the one that the server had before."""
    one, other = own.model("one", 11), own.model("other", 22)
    assert own.sample(one) == [11, 11]

    def interrupted(client, folder):
        client.post("/collective_rpc", json={"method": "reload_weights", "kwargs": {
            "weights_path": str(folder)}})  # fmt: skip
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server, "reload_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.server.ensure(other)
    assert own.sample(one) == [11, 11]
    assert len(own.said("Started")) == 2 and "cut short" in own.said("sdcore")[0]


def test_no_other_user_can_reach_it_and_nothing_is_left_of_it(own):
    before = os.umask(0)
    try:
        own.sample(own.model("one", 11))
    finally:
        os.umask(before)
    home = own.server.socket.parent
    assert home.stat().st_mode & 0o777 == 0o700 and home.stat().st_uid == os.getuid()
    family = psutil.Process().children(recursive=True)
    fakes = [each for each in family if "--uds" in each.cmdline()]
    assert fakes and not [each for each in fakes if each.net_connections("inet")]
    if os.geteuid() == 0:
        attempt = (
            "import os, socket, sys; os.setgroups([]); os.setuid(int(sys.argv[2]));"
            "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        )
        for uid, error in ((0, ""), (65534, "Permission denied")):
            command = [sys.executable, "-ISc", attempt, str(own.server.socket), str(uid)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert error in done.stderr and bool(error) == bool(done.returncode)
    own.engine.close()
    assert not home.exists()


def test_a_server_that_died_is_started_on_the_same_socket(own):
    one = own.model("one", 11)
    own.sample(one)
    own.fail(**{"v1/completions": "exit"})
    assert own.sample(one) == [11, 11]
    assert len(own.said("Started")) == 2


def test_a_closed_server_is_not_started_again_for_requests_that_are_left(own):
    one = own.model("one", 11)
    own.sample(one)
    own.engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        own.sample(one)
    assert len(own.said("Started")) == 1


def test_ctrl_c_is_not_for_the_server(own):
    own.sample(own.model("one", 11))
    children = psutil.Process().children(recursive=True)
    (guard,) = (each for each in children if supervise.__file__ in each.cmdline())
    assert os.getsid(guard.pid) == guard.pid
