"""Settings that make a run fit into less memory, the cheapest first, each with the estimate it leads to."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.memory.estimate import MemoryNeed, memory_need, size_text
from hybrid_ray.tasks import Task, load_task

__all__ = ["MemorySaving", "advice", "advice_lines"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySaving:
    """Settings to add to the earlier savings, their cost, and the job and memory need they lead to."""

    settings: Mapping[str, str]
    costs: str
    job: JobConfig
    need: MemoryNeed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rung:
    settings: Mapping[str, Any]
    costs: str
    applies: Callable[[JobConfig], bool] = lambda job: True


def _has_host(job: JobConfig) -> bool:
    """Whether host memory is separate from the memory of the device that trains."""
    return job.train.device == "cuda"


_LADDER = (
    _Rung(settings={"train.micro_batch_size": 1}, costs="slower, smaller matrix products; same effective batch"),
    _Rung(settings={"model.loss_chunks": 8}, costs="the output logits are computed twice"),
    _Rung(settings={"train.precision": "bf16"}, costs="rounding of activations"),
    _Rung(settings={"model.activation_checkpointing": True}, costs="a second forward pass, about a third more time"),
    _Rung(settings={"train.weights": "bf16", "train.precision": "bf16"}, costs="rounding of weights"),
    _Rung(
        settings={"train.optimizer": "adamw8bit"},
        costs="rounding of moments; needs torchao",
        applies=lambda job: job.train.optimizer == "adamw" and job.train.optimizer_device == "model",
    ),
    _Rung(settings={"hybrid.buffer_dtype": "bfloat16"}, costs="rounding of displacements"),
    _Rung(
        settings={"hybrid.buffer_device": "host"},
        costs="transfers as large as the model in each cycle",
        applies=_has_host,
    ),
    _Rung(
        settings={"train.optimizer": "adamw", "train.optimizer_device": "host"},
        costs="a transfer of its state every step",
        applies=lambda job: _has_host(job) and job.train.optimizer in ("adamw", "adamw8bit"),
    ),
)


def advice(job: JobConfig, task: Task, room: int) -> Iterator[MemorySaving]:
    """Settings that save memory, each added to those before it, until a worker fits into ``room`` bytes.

    Settings that do not apply to the job, or that save nothing, are left out. If the last saving does not fit either,
    no setting helps.
    """
    need = memory_need(job.run(), task)
    for rung in _LADDER:
        if need.total <= room:
            return
        changed = {path: value for path, value in rung.settings.items() if _value(job, path) != value}
        if not changed or not rung.applies(job) or not all(_read(task, path) for path in changed):
            continue
        tried = _with(job, changed)
        task_tried = task if tried.model == job.model else load_task(tried.run())
        after = memory_need(tried.run(), task_tried)
        if after.total < need.total:
            job, task, need = tried, task_tried, after
            settings = {path: str(value).lower() if value is True else str(value) for path, value in changed.items()}
            yield MemorySaving(settings=settings, costs=rung.costs, job=job, need=need)


def advice_lines(job: JobConfig, task: Task, room: int) -> Iterator[str]:
    """The savings as `hybrid-ray plan` prints them."""
    savings = list(advice(job, task, room))
    if not savings:
        yield "no setting saves memory: choose a smaller model or a larger device"
        return
    yield "settings that save memory, to be combined from the top, with the memory of one worker after each:"
    for saving in savings:
        settings = " ".join(f"--set {path}={value}" for path, value in saving.settings.items())
        yield f"  {settings:<42} {size_text(saving.need.total):>10}  {saving.costs}"
    if savings[-1].need.total > room:
        yield f"all of these together do not fit into {size_text(room)}: choose a smaller model or a larger device"
    else:
        yield f"together they fit into {size_text(room)}; train.micro_batch_size=auto then uses the memory left"


def _read(task: Task, path: str) -> bool:
    """Whether the task uses a setting: settings of ``model`` matter only to tasks that read them."""
    section = path.partition(".")[0]
    return section != "model" or bool({section, path} & task.reads)


def _value(job: JobConfig, path: str) -> Any:
    if path == "train.micro_batch_size":
        return job.run().micro_batch_size
    section, field = path.split(".")
    return getattr(getattr(job, section), field)


def _with(job: JobConfig, settings: Mapping[str, Any]) -> JobConfig:
    for path, value in settings.items():
        section, field = path.split(".")
        changed: dict[str, Any] = {section: replace(getattr(job, section), **{field: value})}
        job = replace(job, **changed)
    return job
