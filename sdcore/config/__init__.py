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
from sdcore.config.objectives import (
    OBJECTIVES,
    Condition,
    ConditionSettings,
    DistillConfig,
    GrpoConfig,
    ObjectiveEntry,
    TeacherConfig,
    objective,
)
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
    "CADENCE", "OBJECTIVES", "OPERATIONAL", "RESERVED", "ArithmeticConfig", "BandConfig",
    "ChecksConfig", "Condition", "ConditionSettings", "Count", "CriticConfig", "DiagnoseConfig",
    "DistillConfig", "EngineConfig", "EvaluationConfig", "Experiment", "GrpoConfig",
    "LlmCriticConfig", "LoraConfig", "ModelConfig", "Name", "ObjectiveEntry", "OracleConfig",
    "ProblemsConfig", "PromptsConfig", "SamplingConfig", "Settings", "Share", "TeacherConfig",
    "TrainingConfig", "WarmupConfig", "drift", "load_experiment", "objective",
    "read_settings",
]  # fmt: skip
