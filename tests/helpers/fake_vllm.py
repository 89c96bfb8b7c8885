"""A program that stands in for vLLM's server, started by sdcore as if it were the interpreter.

Its weights are the number in the file `token` of a model folder, and a completion is that number,
kept for each prompt until the prefix cache is reset. `faults.json` beside it maps a path to the
status or the body of the next answer there, or to "exit". It prints what it is asked.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Lock

FAULTS = Path(__file__).with_name("faults.json")
FAULTS_LOCK = Lock()


def token(folder):
    return int(Path(folder, "token").read_text())


def adapter_of(base, name):
    """Folder of an adapter, as far as a server's client looks at it."""
    folder = base.parent / name
    folder.mkdir()
    (folder / "adapter_model.safetensors").touch()
    return folder


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body):
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


class Handler(JsonHandler):
    def do_GET(self):
        names = ["the-model", *self.server.adapters]
        parents = [None] + ["the-model"] * len(self.server.adapters)
        data = [{"id": n, "parent": parent} for n, parent in zip(names, parents, strict=True)]
        self.answer(200, {"data": data})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        print("asked", self.path, json.dumps(body), flush=True)
        with FAULTS_LOCK:  # kept at an exit: no other thread is cut short in its writing
            faults = json.loads(FAULTS.read_text()) if FAULTS.exists() else {}
            fault = faults.pop(self.path, None)
            FAULTS.write_text(json.dumps(faults))
            if fault == "exit":
                os._exit(1)
        result = self.server.act(self.path, body)
        status = fault if isinstance(fault, int) else 200
        self.answer(status, fault if isinstance(fault, dict) else result)


class Server(ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, socket, folder):
        super().__init__(socket, Handler)
        self.token, self.adapters, self.prefixes = token(folder), [], {}

    def act(self, path, body):
        if path == "/v1/load_lora_adapter":
            self.adapters.append(body["lora_name"])
        elif path == "/v1/unload_lora_adapter":
            self.adapters.remove(body["lora_name"])
        elif path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.token = token(body["kwargs"]["weights_path"])
        elif path == "/reset_prefix_cache":
            self.prefixes.clear()
            return {"success": True}
        elif path == "/v1/completions":
            drawn = self.prefixes.setdefault(str(body["prompt"]), self.token)
            choice = {
                "token_ids": [drawn],
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": [-0.5]},
                "finish_reason": "length",
            }
            return {"choices": [choice]}
        return {}


def value(name):
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    print("Started server process", os.getpid(), flush=True)
    Server(value("--uds"), value("--model")).serve_forever()
