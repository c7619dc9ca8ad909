"""hybrid_ray: how much training can be skipped, measured against controls that cost the same.

>>> from hybrid_ray import HybridConfig, HybridTrainer, load_study
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_ray.config import HybridConfig
    from hybrid_ray.method.trainer import HybridTrainer, StepResult
    from hybrid_ray.report.load import Study, load_study
    from hybrid_ray.tasks.task import Task

__all__ = ["HybridConfig", "HybridTrainer", "StepResult", "Study", "Task", "load_study"]

_WHERE = {
    "HybridConfig": "hybrid_ray.config",
    "HybridTrainer": "hybrid_ray.method.trainer",
    "StepResult": "hybrid_ray.method.trainer",
    "Study": "hybrid_ray.report.load",
    "Task": "hybrid_ray.tasks.task",
    "load_study": "hybrid_ray.report.load",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used: the command line answers without waiting for torch and pandas."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hybrid_ray' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
