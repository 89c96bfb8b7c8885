"""Where models lie on this machine; nothing is loaded or downloaded."""

import os
import shutil
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

TINY_SOLVER = Path(__file__).parents[1] / "tiny_solver" / "weights"
SMOKE = "smoke:"  # before the name of a model: a tiny random one in its place


def cache_folder() -> Path:
    """Return the folder of converted models: `$SDCORE_CACHE`, else `~/.cache/sdcore`."""
    return Path(os.environ.get("SDCORE_CACHE") or Path.home() / ".cache" / "sdcore")


def at_hand(name: str) -> Path | None:
    """Return the folder of a named model if its config.json is on this machine, else None."""
    if name == "builtin:tiny-solver":
        return TINY_SOLVER
    if name.startswith(SMOKE):
        return None  # it is made when it is needed
    if name == "builtin:smollm2":
        folder = cache_folder() / "smollm2"
    elif Path(name).is_dir() or name.count("/") != 1:
        folder = Path(name)
    else:
        cached = try_to_load_from_cache(name, "config.json")
        return Path(cached).parent if isinstance(cached, str) else None
    return folder if (folder / "config.json").is_file() else None


def is_setting(path: Path) -> bool:
    """Return whether a file of a model folder is neither weights nor their index."""
    suffixes = {".json", ".jinja", ".txt", ".model"}
    return path.suffix in suffixes and not path.name.endswith(".index.json")


def copy_settings(source: Path, target: Path) -> None:
    """Copy the config and the tokenizer of a model folder into another folder."""
    for path in filter(is_setting, source.iterdir()):
        shutil.copyfile(path, target / path.name)
