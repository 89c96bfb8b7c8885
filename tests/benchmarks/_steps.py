"""One distillation step of a SmolLM2-135M (its architecture, random weights) by sdcore and by TRL.

The rival runs TRL's own code of its experimental self-distillation trainer for the forward passes
and the loss, on the same rollouts, padded as TRL pads them, with the same adapter and AdamW. Left
out, in TRL's favour: its sampling, data loading and logging. It averages over the tokens of a
sequence first, sdcore over all tokens; the work is the same.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sdcore.config import DistillConfig, LoraConfig, TrainingConfig
from sdcore.models import policies
from sdcore.models.policies import Policy
from sdcore.training.trainer import Example, Trainer

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

LENGTHS = (16, 24, 40, 64, 96, 128, 160, 192)  # response tokens of the rollouts
PROMPT, TEACHER_PROMPT = 48, 160
LORA = LoraConfig(rank=64, alpha=128)


def smollm2() -> LlamaForCausalLM:
    """The architecture of SmolLM2-135M; time and memory do not depend on the weights."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rope_theta=100000.0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def rollouts(lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    drawn = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(49152, (count,), generator=drawn).tolist()

    return [
        Example(str(index), ids(PROMPT), ids(length), ids(TEACHER_PROMPT))
        for index, length in enumerate(lengths)
    ]


def ours(
    examples: list[Example],
    lora: LoraConfig | None = LORA,
    build: Callable[[], PreTrainedModel] = smollm2,
) -> Callable[[], float]:
    model: Policy = build()
    if lora is not None:
        model = policies.attach_lora(model, lora, 0)
    condition = DistillConfig(objective="distill", context="none", learning_rate=1e-5)
    trainer = Trainer(model, condition, TrainingConfig(lora=lora), total_steps=99, seed=0)
    return lambda: trainer.step(examples).loss


def trl(
    groups: list[list[Example]], build: Callable[[], PreTrainedModel] = smollm2
) -> Callable[[], float]:
    """A step on all groups, each padded and passed through the model by itself."""
    from trl.experimental.sdft import SDFTTrainer

    model = policies.attach_lora(build(), LORA, 0)
    trainer = SDFTTrainer.__new__(SDFTTrainer)  # its methods, without its data set and sampling
    trainer.model = trainer.teacher_model = model
    trainer.args = SimpleNamespace(
        distillation_mode="full_logits", distillation_alpha=0.0, distillation_is_clip=None,
        teacher_model_kind="base",
    )  # fmt: skip
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda m: m, gather=lambda value: value)
    trainer.model_kwarg_keys, trainer.temperature = {"logits_to_keep"}, 1.0
    trainer.num_loss_tokens_to_skip, trainer.use_teacher_server = 0, False
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.current_gradient_accumulation_steps = len(groups)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.0)
    inputs = [_on(model.device, _trl_inputs(examples)) for examples in groups]

    def work() -> float:
        total = 0.0
        for each in inputs:
            with _autocast(model):
                loss = trainer.compute_loss(model, each)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return work


def _on(device: torch.device, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _autocast(model: Policy) -> AbstractContextManager[object]:
    """As transformers' trainer does for bfloat16."""
    if model.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, model.dtype)


def _trl_inputs(examples: list[Example]) -> dict[str, torch.Tensor]:
    def padded(sequences: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.tensor(ids) for ids in sequences]
        masks = [torch.ones_like(ids) for ids in rows]
        ids, mask = (pad_sequence(each, True, 0, padding_side=side) for each in (rows, masks))
        return ids, mask

    prompts, prompt_mask = padded([e.prompt_ids for e in examples], "left")
    completions, completion_mask = padded([e.response_ids for e in examples], "right")
    hints, hint_mask = padded([e.teacher_prompt_ids for e in examples], "left")
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": completion_mask,
        "teacher_input_ids": torch.cat([hints, completions], 1),
        "teacher_attention_mask": torch.cat([hint_mask, completion_mask], 1),
    }
