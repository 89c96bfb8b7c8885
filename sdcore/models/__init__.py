"""Weights, tokenizers and prompts: where they come from and how they are loaded and saved."""
