"""Where models lie on this machine; nothing is loaded or downloaded."""

import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

TINY_SOLVER = Path(__file__).parents[1] / "tiny_solver" / "weights"


def cache_folder() -> Path:
    """Return the folder of converted models: `$SDCORE_CACHE`, else `~/.cache/sdcore`."""
    return Path(os.environ.get("SDCORE_CACHE") or Path.home() / ".cache" / "sdcore")


def at_hand(name: str) -> Path | None:
    """Return the folder of a named model if its config.json is on this machine, else None."""
    if name == "builtin:tiny-solver":
        return TINY_SOLVER
    if name == "builtin:smollm2":
        folder = cache_folder() / "smollm2"
    elif Path(name).is_dir() or name.count("/") != 1:
        folder = Path(name)
    else:
        cached = try_to_load_from_cache(name, "config.json")
        return Path(cached).parent if isinstance(cached, str) else None
    return folder if (folder / "config.json").is_file() else None
