"""Checks that a folder's files are a usable model, beyond those of transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdcore.errors import ModelError, listed
from sdcore.models.folders import CONFIG, read_config

LAYERS = "num_hidden_layers"
MOST_LAYERS = 1000  # that are made without a look at the tensors; the deepest models have 200
MOST_LABELS = 100_000  # transformers makes a name for each
INDEX = "model.safetensors.index.json"
_AGAIN = "download or save the model again, with the config.json that belongs to it"


def require_few_labels(folder: Path) -> None:
    """Refuse a config.json that asks for more names of labels than can be made in bounded time."""
    if not (folder / CONFIG).is_file():
        return
    config = read_config(folder)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for labels in (part.get("num_labels") for part in parts):
        if isinstance(labels, int) and labels > MOST_LABELS:
            raise ModelError(
                "config.json asks for too many labels",
                got=f"num_labels = {labels}",
                expected=f"at most {MOST_LABELS}; a language model has none",
                where=str(folder / CONFIG),
                fix="take num_labels out",
            )


def require_weights_inside(folder: Path) -> None:
    """Refuse an index of files elsewhere, which the digest of the weights does not cover."""
    path = folder / INDEX
    if not path.is_file():
        return
    try:
        names = {str(name) for name in json.loads(path.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelError(
            "the index of the weights cannot be read",
            got=f"{type(error).__name__}: {error}",
            where=str(path),
            fix=_AGAIN,
        ) from error
    if elsewhere := sorted(name for name in names if name != Path(name).name):
        raise ModelError(
            "the index of the weights names files that are not in the model's folder",
            got=listed(elsewhere),
            expected="names of files beside it",
            where=str(path),
            fix=_AGAIN,
        )


def require_weights(folder: Path, config: Any) -> None:
    """Refuse tensors that are no weights, or fewer than layers, which would be made for hours.

    `config` is that of the text model.
    """
    layers, tensors = getattr(config, LAYERS, 0), 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        tensors += len(types)
        whole = [name for name, dtype in types.items() if not dtype.startswith(("F", "BF"))]
        if whole and not hasattr(config, "quantization_config"):
            raise ModelError(
                "weights are not floating-point numbers",
                got=f"{types[whole[0]]} in {listed(whole)}",
                where=str(path),
                fix="save the model again, in float32 or bfloat16",
            )
    if isinstance(layers, int) and layers > max(tensors, MOST_LAYERS):
        raise ModelError(
            "the tensors in the folder are not those of the model that its config.json describes",
            got=f"{tensors} tensors for {LAYERS} = {layers}",
            where=str(folder),
            fix=_AGAIN,
        )


def require_complete(report: dict[str, Any], folder: Path) -> None:
    """Refuse a model of which transformers made up weights or left some out.

    `report` is transformers' loading info: names of tensors by what is wrong with them. What an
    architecture leaves out on purpose, such as a tied head, is not in it.
    """
    wrong = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": [name for name, *_ in report["mismatched_keys"]],
    }
    if any(wrong.values()):
        raise ModelError(
            "the tensors in the folder are not those of the model that its config.json describes",
            got="; ".join(
                f"{len(names)} {kind}: {listed(sorted(names))}"
                for kind, names in wrong.items()
                if names
            ),
            where=str(folder),
            fix=_AGAIN,
        )


def require_tied(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a config that ties the head to the embedding beside weights that differ.

    transformers then loads them untied, and vLLM tied: two different policies.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and head is not None and head.weight is not embedding.weight:
        raise ModelError(
            "config.json ties the head to the embedding, and the folder has two that differ",
            where=str(folder),
            fix="set tie_word_embeddings to false in config.json, or remove the tensor that does "
            "not belong to the model",
        )


def require_finite(model: PreTrainedModel, logits: Tensor, folder: Path) -> None:
    """Refuse NaN and infinity among weights, rotary frequencies and the logits of a first token.

    Fused attention gives numbers even for positions that are none.
    """
    rotary = [pair for pair in model.named_buffers() if pair[0].endswith("inv_freq")]
    parts = [*model.named_parameters(), *rotary]
    damaged = [name for name, each in parts if each.numel() and not _finite(each.aminmax())]
    if damaged or not _finite(logits.aminmax()):
        raise ModelError(
            "the model computes no numbers",
            got=f"NaN or infinity in {listed(damaged) if damaged else 'its logits'}",
            expected="finite numbers",
            where=str(folder),
            fix=_AGAIN,
        )


def _finite(bounds: Sequence[Tensor]) -> bool:
    """Return whether least and largest are finite; of values with a NaN both are NaN."""
    return all(bool(bound.isfinite()) for bound in bounds)


def require_known_tokens(tokenizer: PreTrainedTokenizerBase, size: int, folder: Path) -> None:
    """Refuse a tokenizer of another model, whose ids go beyond this one's `size` tokens.

    Added tokens do not count: some models have one, such as a padding token, that is never used.
    """
    added = tokenizer.added_tokens_decoder
    beyond = [each for each in tokenizer.get_vocab().items() if each[1] >= size]
    if unknown := [f"{token!r} ({index})" for token, index in beyond if index not in added]:
        raise ModelError(
            "the tokenizer is that of another model",
            got=f"{len(unknown)} tokens that the model does not have: {listed(unknown)}",
            expected=f"ids below {size}, the vocab_size of config.json",
            where=str(folder),
            fix="put the tokenizer that belongs to the model into its folder",
        )
