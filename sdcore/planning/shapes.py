"""The shape of a decoder: parameters, keys and values, activations and FLOPs, without weights.

FLOPs are 2 per weight and token of a forward pass, plus the products of attention
(arXiv 2001.08361, section 2.1); a backward pass by the activations costs as much again, and one by
the weights too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from sdcore.config import LoraConfig
from sdcore.errors import ModelError
from sdcore.models.folders import CONFIG, read_config

BYTES = {"float32": 4, "bfloat16": 2}
KNOWN_TYPES = ("llama", "qwen2", "qwen3")
"""The architectures that are counted: gated MLP, RMS norms, no experts."""
LARGEST = 2**31 - 1  # size of a dimension


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention and a gated MLP.

    Attributes:
        kind: `model_type` of its config.json.
        width: of the hidden states.
        inner: width of the MLP.
        heads: of the queries; `groups` of the keys and values; each `head` wide.
        tied: the head is the embedding.
        biased: queries, keys and values have biases.
        positions: of prompt and response together.
    """

    kind: str
    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    head: int
    vocabulary: int
    tied: bool
    biased: bool
    positions: int

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Self:
        """Read a config.json.

        Args:
            config: its content.
            where: its address, for errors.

        Raises:
            ModelError: the architecture is not one that is counted, or a number is missing.
        """
        kind = str(config.get("model_type"))
        if kind not in KNOWN_TYPES:
            raise ModelError(
                "no plan for this architecture",
                got=kind,
                expected=", ".join(KNOWN_TYPES),
                where=where,
                fix="`sdcore run` works without a plan; add the architecture to "
                "sdcore/planning/shapes.py",
            )
        size = partial(_size, config, where)
        heads, width = size("num_attention_heads"), size("hidden_size")
        return cls(
            kind,
            size("num_hidden_layers"),
            width,
            size("intermediate_size"),
            heads,
            size("num_key_value_heads", heads),
            size("head_dim", width // heads),
            size("vocab_size"),
            bool(config.get("tie_word_embeddings", False)),
            bool(config.get("attention_bias", kind == "qwen2")),
            size("max_position_embeddings"),
        )

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.groups * self.head

    @property
    def normed(self) -> bool:
        """Return whether queries and keys are normalised."""
        return self.kind == "qwen3"

    @property
    def body(self) -> int:
        """Parameters of the matrices of all layers, which each token passes."""
        return self.layers * sum(rows * columns for rows, columns in self.linears.values())

    @property
    def unembedding(self) -> int:
        """Parameters of the head."""
        return self.vocabulary * self.width

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each matrix of a layer, by its name in transformers."""
        return {
            "q_proj": (self.width, self.queries),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.queries, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }

    @property
    def parameters(self) -> int:
        """All parameters: embedding, layers with their norms and biases, last norm, head."""
        biases = self.queries + 2 * self.keys if self.biased else 0
        biases += self.width if self.biased and self.kind == "llama" else 0
        norms = 2 * self.width + (2 * self.head if self.normed else 0)
        embeddings = self.unembedding * (1 if self.tied else 2)
        return self.body + self.layers * (biases + norms) + embeddings + self.width

    def lora_parameters(self, lora: LoraConfig) -> int:
        """Parameters of the adapters: r (in + out) per adapted matrix."""
        widths = (sum(self.linears[name]) for name in lora.targets if name in self.linears)
        return self.layers * lora.rank * sum(widths)

    def cache_bytes(self, dtype: str) -> int:
        """Bytes of the keys and values of a token."""
        return 2 * self.layers * self.keys * BYTES[dtype]

    def forward_flops(self, prompt: float, response: float) -> float:
        """FLOPs of one causal pass over a sequence; the head looks at the response only.

        A token at position t attends to t others: 4 t multiply-adds per query element and layer
        (scores and values), so 2 T² of them for a sequence of T tokens.
        """
        tokens = prompt + response
        attention = 2 * self.layers * self.queries * tokens**2
        return 2 * self.body * tokens + 2 * self.unembedding * response + attention

    def activation_bytes(self, dtype: str, lora: LoraConfig | None) -> float:
        """Bytes per token that one layer keeps for the backward pass.

        The factors were counted with `torch.autograd.graph.saved_tensors_hooks` on random models
        of transformers 5 under the trainer's own autocast; a test counts them again.
        """
        wide, inner, queries, keys, rank = _ACTIVATIONS[dtype, lora is not None]
        more = _NORMED[dtype, lora is not None] if self.normed else 0
        kept = wide * self.width + inner * self.inner
        kept += (queries + more) * self.queries + (keys + more) * self.keys
        return kept + rank * (lora.rank if lora else 0)


_ACTIVATIONS = {  # bytes per element of width, inner, queries, keys and rank
    ("float32", False): (24, 16, 8, 8, 0),
    ("float32", True): (16, 16, 8, 8, 28),
    ("bfloat16", False): (26, 8, 4, 4, 0),
    ("bfloat16", True): (18, 8, 6, 4, 30),
}
_NORMED = {  # more of queries and keys where these are normalised
    ("float32", False): 8,
    ("float32", True): 4,
    ("bfloat16", False): 6,
    ("bfloat16", True): 4,
}


def _known(
    kind: str,
    sizes: tuple[int, int, int, int, int, int],
    vocabulary: int,
    positions: int,
    *,
    tied: bool,
) -> Shape:
    layers, width, inner, heads, groups, head = sizes
    return Shape(
        kind, layers, width, inner, heads, groups, head, vocabulary, tied, False, positions
    )


def _qwen3(*sizes: int, tied: bool = True) -> Shape:
    layers, width, inner, heads, groups = sizes
    every = (layers, width, inner, heads, groups, 128)
    return _known("qwen3", every, 151_936, 40_960, tied=tied)


_SMOLLM2 = _known("llama", (30, 576, 1536, 9, 3, 64), 49_152, 8192, tied=True)

KNOWN: dict[str, Shape] = {  # from config.json of huggingface.co/<name>, main
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, 8),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144, 16, 8),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32, 8),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12_288, 32, 8, tied=False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "HuggingFaceTB/SmolLM2-360M-Instruct": _known(
        "llama", (32, 960, 2560, 15, 5, 64), 49_152, 8192, tied=True
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _known(
        "llama", (24, 2048, 8192, 32, 32, 64), 49_152, 8192, tied=True
    ),
    "builtin:smollm2": _SMOLLM2,
}
"""Shapes of hub models whose config.json need not be at hand."""


def shape_of(name: str, folder: Path | None) -> Shape:
    """Return the shape of a model.

    Args:
        name: as in `model.name`.
        folder: local folder with its config.json; None if it is not on this machine.

    Raises:
        ModelError: it is neither on this machine nor known, or its config.json cannot be used.
    """
    if folder is not None:
        return Shape.of(read_config(folder), str(folder / CONFIG))
    if name not in KNOWN:
        raise ModelError(
            "the shape of this model is not known",
            got=name,
            expected=f"a local folder with config.json, or one of {_names(sorted(KNOWN))}",
            fix="download the model's config.json into a folder, and give it as model.name",
        )
    return KNOWN[name]


def _size(config: Mapping[str, Any], where: str, name: str, default: int | None = None) -> int:
    """Return a size that a config.json gives; the default stands for one that is absent or null."""
    size = default if config.get(name) is None else config[name]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= LARGEST:
        raise ModelError(
            "config.json lacks a number that the shape needs",
            got=f"{name} = {size!r}",
            expected=f"a whole number from 1 to {LARGEST}",
            where=where,
        )
    return size


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)
