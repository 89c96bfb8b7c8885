"""Which engine `engine.kind = "auto"` stands for on a machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from sdcore.config import EngineConfig, ModelConfig
from sdcore.engines import Resources
from sdcore.errors import ConfigError
from sdcore.models.folders import read_config

Kind = Literal["transformers", "vllm"]
KINDS: tuple[Kind, ...] = ("transformers", "vllm")
REGISTRY = "lib/python3*/site-packages/vllm/model_executor/models/registry.py"


@dataclass(frozen=True)
class Choice:
    """The engine that `auto` stands for, and why it is this one, as a clause."""

    kind: Kind
    reason: str

    def __str__(self) -> str:
        return f"Engine: {self.kind}, since {self.reason} (engine.kind = auto)"


def choice(model: ModelConfig, folder: Path | None, python: Path | None, *, gpus: int) -> Choice:
    """Return vLLM where it can serve the model on a GPU, else the engine of this process.

    vLLM's build for processors is never chosen, nor a model in float32: vLLM's adapters on a GPU
    are in 16 bits.

    Args:
        model: its settings.
        folder: with its config.json; None if that is not at hand, and the model taken to be known.
        python: interpreter of vLLM's environment; None if one is taken to be there.
        gpus: that this process may use.
    """
    if not gpus or model.device == "cpu":
        return Choice("transformers", "no GPU is used")
    if python is not None and not python.exists():
        return Choice("transformers", f"{python} does not exist (`make vllm` makes it)")
    if model.dtype != "bfloat16":
        return Choice("transformers", f"vLLM serves no adapters in model.dtype = {model.dtype}")
    unknown = [] if folder is None or python is None else _unknown(folder, python)
    if unknown:
        return Choice("transformers", f"vLLM does not know {', '.join(unknown)}")
    return Choice("vllm", "there is a GPU, and an environment with vLLM")


def unsettled(settings: EngineConfig, resources: Resources) -> NoReturn:
    """Refuse to open an engine whose kind was not settled.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "engine.kind = auto stands for no engine yet",
        got=resources.model.name,
        expected="transformers or vllm",
        fix="`sdcore run` settles it; in Python, `Experiment.sampled_by`",
    )


def _unknown(folder: Path, python: Path) -> list[str]:
    """The model's architectures if vLLM's registry names none of them, else nothing.

    The registry is read as text: to import vLLM takes ten seconds.
    """
    given = read_config(folder).get("architectures")
    names = [str(name) for name in given] if isinstance(given, list) else []
    files = sorted(python.absolute().parents[1].glob(REGISTRY))
    if not files or not names:
        return []
    registry = files[0].read_text("utf-8")
    return [] if any(f'"{name}"' in registry for name in names) else names
