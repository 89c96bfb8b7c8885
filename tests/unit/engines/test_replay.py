"""Decoding with a cache of fixed size; here without the recording, for which see tests/gpu."""

import gc
import weakref

import pytest
import torch
from transformers import LlamaConfig

from sdcore.engines.replay import MODELS, StaticRows, can_replay
from tests.helpers.tiny import llama, of_kind

PROMPTS = [(5, 6, 7), (3, 9, 4, 8, 2, 11, 10), (5, 6, 7), (12,)]


@pytest.mark.parametrize("kind", sorted(MODELS))
@torch.no_grad()
def test_logits_are_those_of_a_plain_forward_pass(kind):
    model, texts = of_kind(kind), [list(prompt) for prompt in PROMPTS]
    assert can_replay(model)
    rows, logits = StaticRows.prefill(model, PROMPTS, new_tokens=12)
    for step in range(12):
        for row, text in zip(logits, texts, strict=True):
            expected = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
        if step == 5:
            rows.keep(torch.tensor([1, 3]))
            texts, logits = [texts[1], texts[3]], logits[[1, 3]]
        token_B = logits.argmax(-1)
        for text, token in zip(texts, token_B.tolist(), strict=True):
            text.append(token)
        logits = rows.advance(token_B)


def test_a_batch_is_freed_with_its_last_reference():
    """A recording is freed with it; in the middle of another one that would spoil the other."""
    rows, logits = StaticRows.prefill(llama(), PROMPTS, new_tokens=2)
    rows.advance(logits.argmax(-1))
    left = weakref.ref(rows)
    gc.disable()
    try:
        del rows
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("window", "replays"), [(None, True), (4, False)])
def test_a_sliding_window_is_not_replayed(window, replays):
    assert can_replay(of_kind("mistral", sliding_window=window)) is replays


@pytest.mark.parametrize(
    ("changes", "replays"),
    [
        ({}, True),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, False),
        ({"model_type": "unheard_of"}, False),
    ],
)
def test_what_cannot_be_recorded_is_not_replayed(changes, replays):
    model = llama()
    model.config = LlamaConfig(**(model.config.to_dict() | changes))
    model.config.model_type = changes.get("model_type", "llama")
    model.config._attn_implementation = "sdpa"
    assert can_replay(model) is replays
