"""The task: a user's own model, data and loss, or a built-in task and the settings that it reads.

Built-in tasks are described here as plain values, so that a job can be checked and a report written without torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hybrid_ray.config.named import is_module_name
from hybrid_ray.config.section import section
from hybrid_ray.config.training import DataConfig, ModelConfig

__all__ = ["OUR_TASKS", "TEXT", "OurTask", "TaskConfig", "our_task", "task_words"]


def _module_name(factory: str) -> str:
    if not is_module_name(factory):
        raise ValueError("must look like package.module:Name")
    return factory


def _plain(options: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("must hold plain values: text, numbers, lists, mappings") from None
    return options


@section
class TaskConfig:
    """Your own model, data and loss. Without a factory the task is a built-in one, chosen by ``model.preset`` and
    ``data.corpus``.
    """

    factory: Annotated[str, AfterValidator(_module_name)] | None = Field(
        default=None,
        description="package.module:Name of a hybrid_ray.Task. The module is looked for next to the job file, then in "
        "the working directory, then among installed packages",
    )
    options: Annotated[Mapping[str, Any], AfterValidator(_plain)] = field(
        default_factory=dict, hash=False, metadata={"description": "Arguments of the factory"}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OurTask:
    """A built-in task: its class, the jobs that use it, and the settings of ``model`` and ``data`` that it ignores."""

    factory: str
    unit: str
    preset: str | None = None  # value of model.preset that selects it; None: every job that selects no other task
    corpus: str | None = None  # value of data.corpus that selects it
    reads: str  # the data that its model needs, and the setting that provides it
    unread: Mapping[str, str] = field(default_factory=dict)  # settings that it ignores, with the reason
    sharded: bool = True  # whether fsdp can shard its model
    sequences: bool = True  # whether it uses train.sequence_length


_CNN_HAS_NONE, _NO_TEXT = "the cnn has none", "digits are not text"
TEXT = OurTask(
    factory="hybrid_ray.tasks.text:TextTask", unit="token", reads="text: to train on digits, set model.preset to cnn"
)
DIGITS = OurTask(
    factory="hybrid_ray.tasks.digits:DigitsTask",
    unit="picture",
    preset="cnn",
    corpus="digits",
    reads="pictures: set data.corpus to digits",
    unread={
        **{f"model.{name}": _CNN_HAS_NONE for name in ("dropout", "activation_checkpointing")},
        **{f"model.{name}": _CNN_HAS_NONE for name in ("loss_chunks", "pad_vocab_to")},
        **{f"data.{name}": _NO_TEXT for name in ("tokenizer", "vocab_size", "max_bytes")},
    },
    sharded=False,
    sequences=False,
)
OUR_TASKS = (DIGITS,)
"""Tasks that a preset or a corpus selects. All other jobs without a factory use `TEXT`."""


def our_task(task: TaskConfig, model: ModelConfig, data: DataConfig) -> OurTask | None:
    """The built-in task that a job uses; None if it names its own task."""
    if task.factory is not None:
        return None
    return next((ours for ours in OUR_TASKS if model.preset == ours.preset or data.corpus == ours.corpus), TEXT)


def task_words(
    task: TaskConfig,
    model: ModelConfig,
    data: DataConfig,
    sequence_length: int,
    *,
    unit: str = "example",
    measure: str = "loss",
) -> dict[str, str]:
    """Names of a job's model, data, batch and loss in reports. ``unit`` and ``measure`` are those of a user's task."""
    ours = our_task(task, model, data)
    if ours is None:
        own = {"model": f"{task.factory}", "data": "data of the task", "batch_of": "examples"}
        return {**own, "unit": unit, "measure": measure}
    batch_of = f"× {sequence_length} tokens" if ours.sequences else f"{ours.unit}s"
    words = {"model": model.preset, "data": f"corpus {data.corpus}", "batch_of": batch_of}
    return {**words, "unit": ours.unit, "measure": "nats"}
