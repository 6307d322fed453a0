"""One frozen, typed configuration of a run; a YAML file and flags over it give the same thing.

`to_yaml` writes what `load_config` reads.
"""

from sra_train.config.files import generation_of, load_config, pairs
from sra_train.config.presets import ABLATIONS, PRESETS, YARDSTICK, Preset, ablation_called
from sra_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    HubConfig,
    LoraConfig,
    MethodConfig,
    StudentConfig,
    TrackingConfig,
    TrainConfig,
    TrainingConfig,
    differences,
    flatten,
)
from sra_train.config.teachers import TeacherChoice

__all__ = [
    "ABLATIONS",
    "PRESETS",
    "YARDSTICK",
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "HubConfig",
    "LoraConfig",
    "MethodConfig",
    "Preset",
    "StudentConfig",
    "TeacherChoice",
    "TrackingConfig",
    "TrainConfig",
    "TrainingConfig",
    "ablation_called",
    "differences",
    "flatten",
    "generation_of",
    "load_config",
    "pairs",
]
