from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sdcore.errors import ModelError
from sdcore.training import head
from sdcore.training.batches import pack
from tests.helpers.tiny import MODELS, VOCABULARY, adapted, llama


def full_logits(model, prompt, response):
    logits_LV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return logits_LV[len(prompt) - 1 : -1]


@pytest.mark.parametrize("make", [llama, adapted])
def test_padded_batch_sees_what_each_sequence_sees_alone(make):
    model = make()
    prompts, responses = [[3, 4, 5], [6], [7, 8]], [[9, 10], [11, 12, 13, 14, 15], [16]]
    looked = head.head_input(model, pack(prompts, responses))
    alone = [full_logits(model, *pair) for pair in zip(prompts, responses)]
    logits_TV = looked.head.logits(looked.hidden_TD)
    torch.testing.assert_close(logits_TV, torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_heads_that_scale_or_cap_are_exact(name):
    model = MODELS[name]()
    head.require_exact_head(model)
    looked = head.head_input(model, pack([[3, 4]], [[5, 6]]))
    if looked.head.bias_V is not None:
        looked.head.bias_V.copy_(torch.linspace(-1, 1, VOCABULARY))  # it starts as zeros
    expected = full_logits(model, [3, 4], [5, 6])
    torch.testing.assert_close(looked.head.logits(looked.hidden_TD), expected)


def test_a_head_that_does_more_is_refused():
    model = llama()
    model.register_forward_hook(
        lambda module, arguments, output: SimpleNamespace(logits=output.logits + 1)
    )
    with pytest.raises(ModelError, match="not those of its head"):
        head.require_exact_head(model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_head_with_an_adapter_is_refused():
    model = get_peft_model(llama(tied=False), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="not a linear layer"):
        head.head_of(model)


def test_checkpointed_layers_recompute_and_dropout_stays_off():
    model = llama(attention_dropout=0.5).requires_grad_(True)
    packed = pack([[3, 4, 5]], [[6, 7]])
    gradients, calls = [], []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for enabled in (False, True):
        calls.clear()
        with head.checkpointed(model, enabled=enabled):
            looked = head.head_input(model, packed)
        looked.hidden_TD.sum().backward()
        gradients.append(model.model.embed_tokens.weight.grad.clone())
        model.zero_grad()
        assert len(calls) == 1 + enabled
    assert torch.equal(*gradients)
    assert not any(module.training for module in model.modules())


def test_head_of_an_adapted_policy_is_the_base_models():
    model = adapted()
    assert isinstance(head.unwrap_peft(model).get_output_embeddings(), nn.Linear)
    assert head.head_of(model).weight_VD is head.unwrap_peft(model).get_output_embeddings().weight


@torch.no_grad()
def test_a_head_that_masks_tokens_is_exact():
    model = MODELS["with a bias"]()
    model.get_output_embeddings().bias[-3:] = -torch.inf
    head.require_exact_head(model)
