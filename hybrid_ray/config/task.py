"""Whose model, data and loss: a user's own task, or one of ours and which settings it reads.

Ours are described here as plain values, so that a job is checked, and a report written, without loading torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hybrid_ray.config.named import is_module_name
from hybrid_ray.config.section import section
from hybrid_ray.config.training import DataConfig, ModelConfig

__all__ = ["OUR_TASKS", "TEXT", "OurTask", "TaskConfig", "our_task", "stored_words", "task_words"]


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
    """Whose model, data and loss. Without a factory the task is one of ours, chosen by ``model.preset`` and
    ``data.corpus``.
    """

    factory: Annotated[str, AfterValidator(_module_name)] | None = Field(
        default=None,
        description="package.module:Name of a hybrid_ray.Task. The module is looked for next to the job file, then in "
        "the working directory, then among installed packages",
    )
    options: Annotated[Mapping[str, Any], AfterValidator(_plain)] = field(
        default_factory=dict, hash=False, metadata={"description": "What the task is made with"}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OurTask:
    """One of our own tasks: where it is, which jobs it is for, and what it reads of ``model`` and ``data``."""

    factory: str
    unit: str
    preset: str | None = None  # the value of model.preset that asks for it; None: all that ask for no other task
    corpus: str | None = None  # the same of data.corpus
    reads: str  # what its model reads, and how to get that
    unread: Mapping[str, str] = field(default_factory=dict)  # settings that it does not read: why not
    sharded: bool = True  # fsdp has something to shard
    sequences: bool = True  # train.sequence_length counts


_CNN_HAS_NONE, _NO_TEXT = "the cnn has none", "digits are no text"
TEXT = OurTask(factory="hybrid_ray.tasks.text:TextTask", unit="token", reads="text: for digits set model.preset to cnn")
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
"""Those that a preset or a corpus asks for; all other jobs without a factory are `TEXT`."""


def our_task(task: TaskConfig, model: ModelConfig, data: DataConfig) -> OurTask | None:
    """The task of ours that a job asks for; None where it names a task of its own."""
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
    """What reports call a job's model, data, batch and loss. ``unit`` and ``measure``: of a user's own task."""
    ours = our_task(task, model, data)
    if ours is None:
        own = {"model": f"{task.factory}", "data": "data of the task", "batch_of": "examples"}
        return {**own, "unit": unit, "measure": measure}
    batch_of = f"× {sequence_length} tokens" if ours.sequences else f"{ours.unit}s"
    words = {"model": model.preset, "data": f"corpus {data.corpus}", "batch_of": batch_of}
    return {**words, "unit": ours.unit, "measure": "nats"}


def stored_words(job: Mapping[str, Any]) -> Mapping[str, str]:
    """`task_words` of a comparison, as it stored them; of an older one, which had our own tasks alone, from its job."""
    if "words" in job:
        words: Mapping[str, str] = job["words"]
        return words
    model, data = ModelConfig(preset=job["model"]), DataConfig(corpus=job["corpus"])
    return task_words(TaskConfig(), model, data, job.get("sequence_length", 0))
