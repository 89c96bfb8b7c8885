"""The tiny solver: a small Llama-style model that sdcore trains from scratch and ships.

It stands in for a pretrained model: it writes traces for the problems of
`sdcore.problems.arithmetic`, lacks some of the arithmetic, and can use a solution in its prompt.
See `sdcore.tiny_solver.corpus` for what it reads.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sdcore.problems.arithmetic import generate_problems
from sdcore.system.threads import torch_threads
from sdcore.tiny_solver.card import measure, write_card
from sdcore.tiny_solver.corpus import Document, documents, missing_facts
from sdcore.tiny_solver.muon import Muon
from sdcore.tiny_solver.tokenizer import build_tokenizer, hinted_prompt


@dataclass(frozen=True)
class Recipe:
    """Recipe of the shipped weights; the model card repeats it."""

    seed: int = 0
    steps: int = 1500
    plain: int = 40  # documents a step of each kind
    aligned: int = 8
    reference: int = 8
    missing: float = 0.4  # share of the digit facts that are never taught
    matrix_rate: float = 0.02  # peak learning rate of Muon, for all matrices but the embedding
    other_rate: float = 2e-3  # peak learning rate of AdamW, for the rest
    warmup: int = 50
    threads: int = 2  # part of the result: sums are split over threads
    test_problems: int = 200
    test_samples: int = 12


Progress = Callable[[int, dict[str, float]], None]


def build(folder: Path, recipe: Recipe, progress: Progress) -> dict[str, float]:
    """Train the solver from scratch and save it with its tokenizer and model card.

    Args:
        folder: where the model goes, in the layout of `transformers`.
        recipe: data, seed and schedule; the same recipe gives the same weights.
        progress: called after each step with its number (from 1) and its losses.

    Returns:
        What the model card states: accuracies, format rate, weights, seconds.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    tokenizer = build_tokenizer()
    missing = missing_facts(recipe.missing, recipe.seed)
    problems = generate_problems(recipe.test_problems, recipe.seed, holdout=True)
    with torch_threads(recipe.threads):
        model = train(tokenizer, recipe, progress)
        seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        measures = measure(model, tokenizer, problems, recipe.test_samples, missing)
    size = {"weights": model.num_parameters(), "seconds": round(seconds), "cpu": round(cpu)}
    measures |= size
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(folder, recipe, measures)
    return measures


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A model with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, progress: Progress
) -> LlamaForCausalLM:
    """Pre-train on the corpus; the loss is on the traces only."""
    model = build_model(tokenizer, recipe.seed).train()
    inner = [w for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name]
    outer = [w for name, w in model.named_parameters() if w.ndim < 2 or "embed" in name]
    muon = Muon(inner)
    adamw = torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step, batches in enumerate(islice(_batches(recipe), recipe.steps)):
        losses = [_loss(model, *_tensors(tokenizer, batch)) for batch in batches]
        count = sum(tokens for _, tokens in losses)
        torch.autograd.backward([loss / count for loss, _ in losses])
        rate = _schedule(step, recipe)
        muon.step(rate * recipe.matrix_rate)
        adamw.param_groups[0]["lr"] = rate * recipe.other_rate
        adamw.step()
        adamw.zero_grad()
        plain, hinted = (float(loss.detach()) / tokens for loss, tokens in losses)
        progress(step + 1, {"loss_plain": plain, "loss_hinted": hinted})
    return model.eval()


def _batches(recipe: Recipe) -> Iterator[tuple[list[Document], list[Document]]]:
    """Plain documents, and documents with a hint, for each step."""
    missing = missing_facts(recipe.missing, recipe.seed)
    sizes = {kind: getattr(recipe, kind) for kind in ("plain", "aligned", "reference")}
    streams = {kind: documents(kind, missing, recipe.seed) for kind in sizes}
    while True:
        plain, *hinted = (list(islice(streams[kind], size)) for kind, size in sizes.items())
        yield plain, [document for batch in hinted for document in batch]


def _tensors(
    tokenizer: PreTrainedTokenizerFast, batch: Sequence[Document]
) -> tuple[Tensor, Tensor]:
    """Token ids [N, T], padded on the right, and which of them are to be learnt."""
    ids, learnt = [], []
    for document in batch:
        prompt = hinted_prompt(tokenizer, document.question, document.hint)
        before, wrong, after = (tokenizer.encode(part) for part in document.trace)
        end = [tokenizer.eos_token_id]
        ids.append(torch.tensor([*prompt, *before, *wrong, *after, *end]))
        marks = [(prompt, False), (before, True), (wrong, False), (after, True), (end, True)]
        learnt.append(torch.tensor([mark for tokens, mark in marks for _ in tokens]))
    return pad_sequence(ids, batch_first=True), pad_sequence(learnt, batch_first=True)


def _loss(model: LlamaForCausalLM, ids_NT: Tensor, learnt_NT: Tensor) -> tuple[Tensor, int]:
    """Summed cross-entropy of the marked tokens, and their number.

    Padding needs no mask: it comes last, and attention looks back only.
    """
    hidden_NTD = model.model(ids_NT, use_cache=False).last_hidden_state[:, :-1]
    learnt_NT = learnt_NT[:, 1:]
    logits_TV = model.lm_head(hidden_NTD[learnt_NT])
    return cross_entropy(logits_TV, ids_NT[:, 1:][learnt_NT], reduction="sum"), int(learnt_NT.sum())


def _schedule(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up under a cosine."""
    return min(1.0, (step + 1) / recipe.warmup) * (1 + math.cos(math.pi * step / recipe.steps)) / 2
