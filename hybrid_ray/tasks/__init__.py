"""Tasks: a model, its data and its loss. GPT-2 on text and a CNN on digits are built in; users can add their own."""

from hybrid_ray.tasks.load import load_task, optimizer_of
from hybrid_ray.tasks.task import Batch, Task

__all__ = ["Batch", "Task", "load_task", "optimizer_of"]
