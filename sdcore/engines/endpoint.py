"""One vLLM server as its client sees it: the OpenAI-compatible API, and which policy is loaded."""

from pathlib import Path
from threading import Lock
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from sdcore.engines import Served
from sdcore.engines.connections import follows_environment, opening
from sdcore.engines.server import NO_LIMITS, VllmServer
from sdcore.errors import EngineError
from sdcore.keys import Key, redacted
from sdcore.models.weight_files import ADAPTER_FILE, FULL_FILE

SHOWN = 500  # characters of an answer, in an error
QUIET = 3600.0  # seconds without a byte of an answer


class Unavailable(EngineError):
    """The server did not answer, or not with what was asked for; a retry may help."""


class Endpoint:
    """A running server, started by us or not. Adapters are loaded when they are needed.

    The key is its bearer token; it is cut out of everything that the server sends back.

    Attributes:
        active: requests in flight, counted by the engine.
        failures: requests that failed since it last answered.
    """

    def __init__(self, url: str, key: Key | None, server: VllmServer | None = None) -> None:
        self._key, self._server = key, server
        self.active, self.failures = 0, 0
        with opening(url):
            self._client = httpx.Client(
                base_url=url,
                transport=server.transport() if server else None,
                headers={"Authorization": f"Bearer {key.text}"} if key else {},
                timeout=httpx.Timeout(10, read=QUIET, pool=None),
                limits=NO_LIMITS,
                trust_env=follows_environment(httpx.URL(url)),
            )
        self._lock = Lock()
        self._where = str(server.socket) if server else url
        self._fix = f"see {server.log_path}" if server else "check that it runs, and its log"
        self._ready: tuple[Served, str] | None = None  # and the name the server has for it
        self._adapters: set[str] = set()  # those that we have loaded

    def complete(self, served: Served, body: dict[str, Any]) -> Any:
        """Return the server's answer to a completion request.

        Raises:
            Unavailable: it does not answer; it is made ready again at the next call.
            EngineError: it refuses the request, cannot serve the policy, or was closed.
        """
        if self._client.is_closed:  # while a thread was sampling; a server is not started again
            raise EngineError("the engine is closed", where=self._where)
        try:
            model = self._model(served)
            answer = self._post("/v1/completions", body | {"model": model})
        except Unavailable:
            with self._lock:
                self.failures, self._ready = self.failures + 1, None
            raise
        self.failures = 0
        return answer

    def recheck(self) -> None:
        """Check before the next request that the server still has the policy."""
        with self._lock:
            self.failures, self._ready = 0, None

    def close(self) -> None:
        """End the connections and, if it is ours, the server."""
        self._client.close()
        if self._server is not None:
            self._server.close()

    def _model(self, served: Served) -> str:
        """The server's name of the policy, which is loaded first where it has to be."""
        with self._lock:
            if self._ready is None or self._ready[0] != served:
                self._ready = served, self._loaded(served)
            return self._ready[1]

    def _loaded(self, served: Served) -> str:
        folder = _folder_of(served)
        adapter = (folder / ADAPTER_FILE).exists()
        if self._server is not None:
            self._server.ensure(served.base if adapter else folder)
        elif not adapter and folder != served.base:
            raise EngineError(
                "a running vLLM server cannot be given new full weights",
                got=f"policy {served.policy_id} of {folder / FULL_FILE}",
                where=self._where,
                fix="set training.lora, or leave out engine.urls: sdcore then runs its own server",
            )
        models = self._models()
        names = [model.id for model in models]
        self._unload(self._adapters & set(names) - {served.policy_id})
        if not adapter:
            return next(model.id for model in models if model.parent is None)
        if served.policy_id not in names:
            self._load(served.policy_id, folder)
        self._adapters = {served.policy_id}
        return served.policy_id

    def _models(self) -> "list[_Model]":
        """The models of the server: one of its own, and adapters.

        Raises:
            EngineError: the answer is not vLLM's.
        """
        answer = self._request("GET", "/v1/models")
        try:
            models = _Models.model_validate(answer).data
        except ValidationError:
            models = []
        if all(model.parent is not None for model in models):
            raise EngineError(
                "this is not a vLLM server",
                got=f"{answer}"[:SHOWN],
                expected="a list of models, one of them without a parent",
                where=f"{self._where}/v1/models",
                fix="engine.urls names vLLM servers, without /v1 at the end",
            )
        return models

    def _load(self, policy_id: str, folder: Path) -> None:
        try:
            body = {"lora_name": policy_id, "lora_path": str(folder.absolute())}
            self._post("/v1/load_lora_adapter", body)
        except Unavailable:
            raise
        except EngineError as error:
            raise EngineError(
                "the vLLM server does not load the adapter",
                got=error.got,
                where=f"{self._where}, {folder}",
                fix="start it with --enable-lora, --max-lora-rank and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where it can read this folder",
            ) from error

    def _unload(self, names: set[str]) -> None:
        for name in names:
            self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.RequestError as error:  # some quote what the server sent
            raise Unavailable(
                "the vLLM server does not answer",
                got=redacted(f"{type(error).__name__}: {error}", self._key),
                where=self._where,
                fix=self._fix,
            ) from None
        if answer.is_success:
            try:
                return redacted(answer.json(), self._key)
            except (ValueError, RecursionError):
                return redacted(answer.text, self._key)
        passing = answer.is_server_error or answer.status_code == 429
        raise (Unavailable if passing else EngineError)(
            "the vLLM server refuses a request",
            got=redacted(f"{answer.status_code} {answer.text}", self._key),
            where=f"{self._where}{path}",
            fix=self._fix if passing else "",
        )


class _Model(BaseModel):
    id: str
    parent: str | None


class _Models(BaseModel):
    """The answer to `/v1/models`, as far as it is used."""

    data: list[_Model]


def _folder_of(served: Served) -> Path:
    if served.folder is None:
        raise EngineError(
            "vLLM reads weights from a folder, and this policy has none",
            got=f"policy {served.policy_id}",
            fix="save a checkpoint before sampling from it",
        )
    return served.folder
