"""hybrid_ray: how much training can be skipped, measured against controls that cost the same.

>>> from hybrid_ray import load_job, run_study
>>> study = run_study(load_job("jobs/local.yaml", ["train.steps=2000"]))  # as `hybrid-ray run`

Nothing here loads ray or optuna before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_ray.config import HybridConfig
    from hybrid_ray.config.jobfile import read_job as load_job
    from hybrid_ray.method.predictors.base import Predictor
    from hybrid_ray.method.trainer import HybridTrainer, StepResult
    from hybrid_ray.ray_tune.tuner import build_tuner
    from hybrid_ray.report.load import Study, load_study
    from hybrid_ray.study.python import run_study
    from hybrid_ray.tasks.task import Task

__all__ = [
    "HybridConfig",
    "HybridTrainer",
    "Predictor",
    "StepResult",
    "Study",
    "Task",
    "build_tuner",
    "load_job",
    "load_study",
    "run_study",
]

_WHERE = {
    "HybridConfig": "hybrid_ray.config:HybridConfig",
    "HybridTrainer": "hybrid_ray.method.trainer:HybridTrainer",
    "Predictor": "hybrid_ray.method.predictors.base:Predictor",
    "StepResult": "hybrid_ray.method.trainer:StepResult",
    "Study": "hybrid_ray.report.load:Study",
    "Task": "hybrid_ray.tasks.task:Task",
    "build_tuner": "hybrid_ray.ray_tune.tuner:build_tuner",
    "load_job": "hybrid_ray.config.jobfile:read_job",
    "load_study": "hybrid_ray.report.load:load_study",
    "run_study": "hybrid_ray.study.python:run_study",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used: the command line answers without waiting for torch and pandas."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hybrid_ray' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute)
