"""sdcore: feedback design for self-distillation of language models.

The public API, each name imported when it is first used:

    import sdcore

    experiment = sdcore.load_experiment("quickstart", ["training.rounds=5"])
    run = sdcore.run(experiment, "runs")
    print(run.comparison())
    print(run.champion().generate(["Compute 16-30+54+10."]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcore.config import Experiment as Experiment
    from sdcore.config import critic as critic
    from sdcore.config import engine as engine
    from sdcore.config import load_experiment as load_experiment
    from sdcore.config import objective as objective
    from sdcore.config import source as source
    from sdcore.config import weighting as weighting
    from sdcore.contexts import ContextInputs as ContextInputs
    from sdcore.contexts import context as context
    from sdcore.errors import SdcoreError as SdcoreError
    from sdcore.grading.graders import grader as grader

__version__ = "0.1.0"

_PUBLIC = {
    "Experiment": "sdcore.config",
    "load_experiment": "sdcore.config",
    "ContextInputs": "sdcore.contexts",
    "context": "sdcore.contexts",
    "objective": "sdcore.config",
    "engine": "sdcore.config",
    "critic": "sdcore.config",
    "source": "sdcore.config",
    "weighting": "sdcore.config",
    "grader": "sdcore.grading.graders",
    "SdcoreError": "sdcore.errors",
    "run": "flows.api",
    "open": "flows.api",
}
__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; torch and Prefect load only where needed."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sdcore' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
