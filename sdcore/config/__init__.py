"""The experiment file: typed, frozen, bounded; unknown keys are refused."""

from sdcore.config.additions import Additions
from sdcore.config.base import NAME_LENGTH, Count, Name, Settings, Share
from sdcore.config.cluster import ClusterConfig
from sdcore.config.critic import (
    CRITICS,
    OPERATIONAL,
    CascadeConfig,
    CriticConfig,
    CriticEntry,
    CriticSettings,
    DiagnoseConfig,
    Limits,
    LlmCriticConfig,
    OracleConfig,
    critic,
)
from sdcore.config.design import DesignConfig
from sdcore.config.experiment import RESERVED, Experiment
from sdcore.config.health import HealthConfig
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
from sdcore.config.overrides import as_toml, drift, load_experiment, read_settings
from sdcore.config.problems import (
    SOURCES,
    ArithmeticConfig,
    BandConfig,
    ChecksConfig,
    ProblemsConfig,
    SourceEntry,
    WordProblemsConfig,
    source,
)
from sdcore.config.sampling import (
    AUTO,
    ENGINES,
    EngineConfig,
    EngineEntry,
    ModelConfig,
    PromptsConfig,
    SamplingConfig,
    engine,
)
from sdcore.config.sweeps import SweepConfig, Trial
from sdcore.config.training import (
    CADENCE,
    MOST_TOKENS,
    EvaluationConfig,
    LoraConfig,
    TrainingConfig,
    WarmupConfig,
)
from sdcore.config.weightings import (
    WEIGHTINGS,
    AdvantageWeights,
    PositionWeights,
    RegionWeights,
    RelevanceWeights,
    WeightingEntry,
    WeightingSettings,
    weighting,
)

__all__ = [
    "AUTO", "CADENCE", "CRITICS", "ENGINES", "MOST_TOKENS", "NAME_LENGTH", "OBJECTIVES",
    "OPERATIONAL", "RESERVED", "SOURCES", "WEIGHTINGS", "Additions", "AdvantageWeights",
    "ArithmeticConfig", "BandConfig", "CascadeConfig", "ChecksConfig", "ClusterConfig", "Condition",
    "ConditionSettings", "Count", "CriticConfig", "CriticEntry", "CriticSettings", "DesignConfig",
    "DiagnoseConfig", "DistillConfig", "EngineConfig", "EngineEntry", "EvaluationConfig",
    "Experiment", "GrpoConfig", "HealthConfig", "Limits", "LlmCriticConfig", "LoraConfig",
    "ModelConfig", "Name", "ObjectiveEntry", "OracleConfig", "PositionWeights", "ProblemsConfig",
    "PromptsConfig", "RegionWeights", "RelevanceWeights", "SamplingConfig", "Settings", "Share",
    "SourceEntry", "SweepConfig", "TeacherConfig", "TrainingConfig", "Trial", "WarmupConfig",
    "WeightingEntry", "WeightingSettings", "WordProblemsConfig", "as_toml", "critic", "drift",
    "engine", "load_experiment", "objective", "read_settings", "source", "weighting",
]  # fmt: skip
