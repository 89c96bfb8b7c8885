"""sdcore: feedback design for self-distillation of language models."""

__version__ = "0.1.0"
