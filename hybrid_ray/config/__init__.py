"""The settings of a job, as frozen dataclasses. ``config/jobfile`` reads them from YAML and lists all problems at once.

A *job* (`JobConfig`) is what a user writes. A *run* (`RunConfig`) is one training of one model with one seed: the
baseline, a searched trial, a control. Every run uses the loop in ``training/loop.py``, so runs differ only in
their configuration.

Each class checks its values when it is made and raises one `ConfigError` with all problems (``config/section.py``).
"""

from hybrid_ray.config.evaluation import (
    Arm,
    CompareConfig,
    ConfirmConfig,
    ControlArm,
    FrontierConfig,
    ObjectiveConfig,
    Split,
    arm_label,
)
from hybrid_ray.config.hybrid import GateName, HybridConfig
from hybrid_ray.config.job import JobConfig, PublishedName, RunConfig
from hybrid_ray.config.ladder import LadderConfig
from hybrid_ray.config.predictors import PredictorConfig, PredictorName
from hybrid_ray.config.search import BudgetConfig, ResourcesConfig, SearchConfig
from hybrid_ray.config.task import TaskConfig
from hybrid_ray.config.training import DataConfig, ModelConfig, OptimizerName, PruneScore, TrainConfig

__all__ = [
    "Arm",
    "BudgetConfig",
    "CompareConfig",
    "ConfirmConfig",
    "ControlArm",
    "DataConfig",
    "FrontierConfig",
    "GateName",
    "HybridConfig",
    "JobConfig",
    "LadderConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerName",
    "PredictorConfig",
    "PredictorName",
    "PruneScore",
    "PublishedName",
    "ResourcesConfig",
    "RunConfig",
    "SearchConfig",
    "Split",
    "TaskConfig",
    "TrainConfig",
    "arm_label",
]
