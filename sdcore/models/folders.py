"""Folders of models on this machine; nothing is loaded or downloaded."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from sdcore.errors import ModelError
from sdcore.models.sealed import file_digest
from sdcore.store.schema import content_key

CONFIG = "config.json"
SETTINGS = (
    CONFIG, "generation_config.json", "tokenizer*", "chat_template*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
)  # fmt: skip
"""Patterns of the names of a model's config and tokenizer."""
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
        cached = try_to_load_from_cache(name, CONFIG)
        return Path(cached).parent if isinstance(cached, str) else None
    return folder if (folder / CONFIG).is_file() else None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a model folder's config.json.

    Raises:
        ModelError: it cannot be read, or is not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("config.json cannot be read", got=error, where=str(path)) from error
    if not isinstance(config, dict):
        raise ModelError(
            "config.json holds no settings", got=config, expected="an object", where=str(path)
        )
    return config


def copy_settings(source: Path, target: Path) -> None:
    """Copy the config and the tokenizer of a model folder into another folder."""
    for path in _settings(source):
        shutil.copyfile(path, target / path.name)


def settings_digest(folder: Path) -> str:
    """Digest of the config and the tokenizer, which decide beside the weights what is sampled."""
    return content_key({path.name: file_digest(path) for path in _settings(folder)})


def _settings(folder: Path) -> set[Path]:
    found = {path for pattern in SETTINGS for path in folder.glob(pattern)}
    return {path for path in found if path.is_file() and path.name.isprintable()}
