import pytest
import torch

from sdcore.config import LoraConfig
from sdcore.errors import ModelError
from sdcore.models import adapters, policies
from sdcore.models.adapters import LowRank
from tests.helpers.tiny import adapted, gpt2, llama

IDS = torch.tensor([[3, 4, 5, 6]])


def changed(policy, scale=0.1):
    torch.manual_seed(1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
    return policy


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sets it for GPT-2's layers
@pytest.mark.parametrize(
    ("base", "targets"), [(llama, ("q_proj", "down_proj")), (gpt2, ("c_attn", "c_proj"))]
)
@torch.no_grad()
def test_updates_beside_and_merged_weights_are_the_adapted_policy(base, targets):
    policy = changed(policies.attach_lora(base(), LoraConfig(rank=4, alpha=8, targets=targets), 0))
    expected = policy(IDS).logits
    beside, merged = base(), base()
    for name, update in adapters.updates_of(policy).items():
        update.added_to(beside.get_submodule(name))
    torch.testing.assert_close(beside(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    for name, weight in adapters.merged_weights(policy).items():
        merged.get_parameter(name).copy_(weight)
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_share_that_a_sampler_holds_is_that_of_the_inner_products():
    updates = adapters.updates_of(changed(adapted()))
    held = {name: LowRank(each.a_RI, each.b_OR / 4) for name, each in updates.items()}
    dense = [(update.b_OR @ update.a_RI).flatten() for update in updates.values()]
    kept = [(each.b_OR @ each.a_RI).flatten() for each in held.values()]
    expected = float(torch.cat(kept) @ torch.cat(dense) / torch.cat(dense).square().sum())
    assert adapters.held_share(updates, held) == pytest.approx(expected) == pytest.approx(0.25)
    assert adapters.held_share(adapters.updates_of(adapted()), {}) is None  # B is zero


def test_a_disabled_adapter_and_a_bare_model_have_no_updates():
    policy = changed(adapted())
    assert len(adapters.updates_of(policy)) > 0
    with policy.disable_adapter():
        assert adapters.updates_of(policy) == {}
    assert adapters.updates_of(llama()) == {}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head", "model.embed_tokens"])
def test_embeddings_and_heads_cannot_be_adapted(target, tied, tmp_path):
    lora = LoraConfig(rank=4, alpha=8, targets=("q_proj", target))
    with pytest.raises(ModelError, match=target):
        policies.attach_lora(llama(tied=tied), lora, 0)
    llama(tied=tied).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=target):
        policies.check_targets(tmp_path, lora)


def test_targets_are_checked_without_weights(tmp_path):
    llama().config.save_pretrained(tmp_path)
    policies.check_targets(tmp_path, LoraConfig(rank=4, alpha=8))
    with pytest.raises(ModelError, match="does not fit"):
        policies.check_targets(tmp_path, LoraConfig(targets=("no_such_layer",)))
