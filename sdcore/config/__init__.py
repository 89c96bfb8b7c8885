"""The experiment file: typed, frozen, bounded; unknown keys are refused."""

from sdcore.config.base import Count, Name, Settings, Share
from sdcore.config.critic import (
    OPERATIONAL,
    CriticConfig,
    DiagnoseConfig,
    LlmCriticConfig,
    OracleConfig,
)
from sdcore.config.experiment import RESERVED, Experiment
from sdcore.config.objectives import Condition, DistillConfig, GrpoConfig, TeacherConfig
from sdcore.config.overrides import drift, load_experiment, read_settings
from sdcore.config.problems import (
    ArithmeticConfig,
    BandConfig,
    ChecksConfig,
    ProblemsConfig,
)
from sdcore.config.sampling import EngineConfig, ModelConfig, PromptsConfig, SamplingConfig
from sdcore.config.training import (
    CADENCE,
    EvaluationConfig,
    LoraConfig,
    TrainingConfig,
    WarmupConfig,
)

__all__ = [
    "CADENCE", "OPERATIONAL", "RESERVED", "ArithmeticConfig", "BandConfig", "ChecksConfig",
    "Condition", "Count", "CriticConfig", "DiagnoseConfig", "DistillConfig", "EngineConfig",
    "EvaluationConfig", "Experiment", "GrpoConfig", "LlmCriticConfig", "LoraConfig", "ModelConfig",
    "Name", "OracleConfig", "ProblemsConfig", "PromptsConfig", "SamplingConfig", "Settings",
    "Share", "TeacherConfig", "TrainingConfig", "WarmupConfig", "drift", "load_experiment",
    "read_settings",
]  # fmt: skip
