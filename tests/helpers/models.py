"""What a run does with a model's folder before it samples."""

from pathlib import Path

import torch

from sdcore.config import LoraConfig, ModelConfig, PromptsConfig
from sdcore.models import hub, policies, prompts


def use(folder: Path) -> None:
    """Load all of it, and run one forward pass."""
    found = hub.resolve(str(folder))
    tokenizer = policies.load_tokenizer(found)
    prompts.require_shown(tokenizer, PromptsConfig())
    prompts.end_of_turn(tokenizer, policies.end_ids(found))
    policies.context_length(found)
    policies.check_targets(found, LoraConfig())
    policy = policies.load_policy(found, ModelConfig(name=str(folder), device="cpu"))
    ids = prompts.student_prompt(tokenizer, PromptsConfig(), "1 + 1?")
    policy(input_ids=torch.tensor([ids[:60]]))
