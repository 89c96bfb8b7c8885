"""Open the engine that the settings name."""

from sdcore.config import ENGINES, EngineConfig
from sdcore.engines import Engine, Resources
from sdcore.registry import loaded


def open_engine(settings: EngineConfig, resources: Resources) -> Engine:
    """Return the registered engine of `settings.kind`; whoever opens it closes it.

    Raises:
        ConfigError: there is no such engine, or it cannot be imported.
        EngineError: it cannot be started.
    """
    engine: Engine = loaded(ENGINES[settings.kind].implementation)(settings, resources)
    return engine
