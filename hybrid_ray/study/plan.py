"""`plan`: the time and memory that a job needs. Trains nothing.

The time is measured if a baseline of this job is in the cache. Otherwise it is estimated from the model's FLOPs and a
short matrix multiplication with the model's sizes. The plan says which.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from hybrid_ray.config import CompareConfig, JobConfig, ResourcesConfig, RunConfig
from hybrid_ray.data.cache import cache_root
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import baseline, check_arms
from hybrid_ray.memory.estimate import memory_need, size_text
from hybrid_ray.memory.micro_batch import check_open_micro_batch, resolve_micro_batch
from hybrid_ray.memory.plan_text import MemoryPlan, memory_lines
from hybrid_ray.ray_tune.checks import check_search
from hybrid_ray.ray_tune.cluster import Resources, local_resources, ray_session, resource_concurrency
from hybrid_ray.ray_tune.scheduler import grace_steps, rungs
from hybrid_ray.ray_tune.session_folder import temporary_root
from hybrid_ray.ray_tune.space import SearchSpace, load_space
from hybrid_ray.storage.run_cache import RunCache, baseline_key, read_result
from hybrid_ray.study.concurrency import Concurrency, available_bytes, memory_concurrency, room, sharing
from hybrid_ray.study.run_counts import Stage, comparison_stages, stages
from hybrid_ray.study.stopping import check_budget
from hybrid_ray.tasks import Task, load_task
from hybrid_ray.tasks.task import AUTOCAST, MatmulProbe, batch_to
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.setup import synchronize

__all__ = [
    "Plan",
    "Stage",
    "duration",
    "most_at_a_time",
    "plan",
    "plan_concurrency",
    "plan_memory",
    "resolve_auto",
    "run_cache",
]

_OVERHEAD = 2.0  # time of a step / time of its matrix products; the rest is norms, softmax, optimizer, Python
_PROBE_ROWS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Time and memory of a job. Seconds are wall time with ``concurrency`` runs at a time; bytes are those of the
    training device.
    """

    stages: tuple[Stage, ...]
    compared: tuple[Stage, ...]  # stages of `hybrid-ray compare`; empty if the job has no compare section
    run: RunConfig
    concurrency: Concurrency
    step_seconds: float
    measured: bool
    probe: str  # how the seconds were estimated, if they were not measured
    device: str
    stops: str  # when trials may be stopped, in words

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def seconds(self, stage: Stage) -> float:
        """Wall time of a stage, in whole rounds of ``concurrency`` runs: the last round may have fewer."""
        if not stage.runs:
            return 0.0
        rounds = math.ceil(stage.runs / self.concurrency.runs)
        return rounds * stage.steps / stage.runs * self.step_seconds

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds(stage) for stage in self.stages)

    @property
    def text(self) -> str:
        """As `hybrid-ray plan` prints it."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from self._table("stage", self.stages)
        if self.compared:
            yield from self._table("compare", self.compared)
        how = "measured in a cached baseline" if self.measured else f"estimated from {self.probe}"
        yield f"{1000 * self.step_seconds:.3g} ms per real step ({how})"
        yield f"{self.concurrency.runs} runs at a time on {self.device}"
        yield self.stops
        yield from memory_lines(self.run, self.concurrency.need)
        there, needed = size_text(self.concurrency.there), size_text(self.concurrency.needed)
        yield f"{self.concurrency.sharing} at a time need {needed}; {there} are free"

    def _table(self, title: str, stages: Sequence[Stage]) -> Iterator[str]:
        yield f"{title:<14}{'runs':>6}{'steps':>12}{'time':>12}"
        for stage in stages:
            yield f"{stage.name:<14}{stage.runs:>6}{stage.steps:>12,}{duration(self.seconds(stage)):>12}"
        runs, steps = (sum(getattr(stage, name) for stage in stages) for name in ("runs", "steps"))
        yield f"{'total':<14}{runs:>6}{steps:>12,}{duration(sum(map(self.seconds, stages))):>12}"


def resolve_auto(job: JobConfig) -> JobConfig:
    """The job with the settings filled in that depend on the machine: GPUs per worker, device, micro-batch ``auto``.

    The micro-batch is the largest that fits when as many runs share the device as in a search, so that all commands use
    the same. It is stored with the job and kept when the free memory changes.

    Raises:
        ConfigError: the device and the number of GPUs contradict each other, or the micro-batch is ``auto`` and its
            device is not on this machine.
    """
    job = resolve_device(job)
    if job.train.micro_batch_size == "auto":
        job = resolve_micro_batch(job, _free_for_one(job))
    return job


def _free_for_one(job: JobConfig) -> int:
    """Bytes for each worker if the largest allowed number of runs share the device."""
    load_task(job.run())
    check_open_micro_batch(job)
    runs = min(resource_concurrency(job, local_resources()), most_at_a_time(job))
    device = _device(job)
    return room(available_bytes(device), device) // sharing(job, runs)


def resolve_device(job: JobConfig) -> JobConfig:
    """The job with the number of GPUs per worker filled in, and the device, which follows from it.

    Unset GPUs become 1 if the device is cuda, or if it is auto and this machine has a GPU for each worker; else 0. A
    cluster is not asked: a job for a cluster must name its GPUs, else it runs on CPUs. Device auto becomes cuda if
    there are GPUs. The result is part of every run, so that all commands use the same cache key. Resolving a resolved
    job changes nothing.

    Raises:
        ConfigError: the device and the number of GPUs contradict each other.
    """
    train, gpus = job.train, job.resources.gpus_per_worker
    if gpus is None:
        gpus = float(train.device == "cuda" or (train.device == "auto" and _gpus_for_all_workers(job.resources)))
    device = train.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError(
            "train.device is 'cuda' but resources.gpus_per_worker is 0, so any number of runs would share one GPU: "
            "leave gpus_per_worker out (1), give a share (0.25: four runs on a GPU), or set train.device to cpu"
        )
    if device == "cpu" and gpus:
        raise ConfigError(
            f"train.device is 'cpu' but resources.gpus_per_worker is {gpus:g}, which the runs would reserve but not "
            "use: set gpus_per_worker to 0, or train.device to cuda"
        )
    return replace(job, train=replace(train, device=device), resources=replace(job.resources, gpus_per_worker=gpus))


def _gpus_for_all_workers(resources: ResourcesConfig) -> bool:
    here = resources.address == "local" and torch.cuda.is_available()
    return here and torch.cuda.device_count() >= resources.workers


def plan(job: JobConfig) -> Plan:
    """Time and memory of a job on the machine or cluster that would run it. A cluster is asked for its resources.

    Raises:
        ConfigError: the model, space or corpus does not exist, there are too few resources, a budget limits nothing, or
            a run does not fit in memory.
    """
    job = resolve_auto(job)
    check_budget(job)
    space = load_space(job)
    check_search(job, space)
    check_arms(job)
    found = plan_concurrency(job, most=most_at_a_time(job))
    task = load_task(job.run())
    seconds, measured = _step_seconds(job, task)
    device = _device(job)
    return Plan(
        stages=tuple(stages(job)),
        compared=() if job.compare == CompareConfig() else tuple(comparison_stages(job)),
        run=job.run(),
        concurrency=found,
        step_seconds=seconds,
        measured=measured,
        probe="FLOPs and a timed matrix product" if task.matmul_probe() else "a timed gradient",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
        stops=_stops(job, space),
    )


def _stops(job: JobConfig, space: SearchSpace) -> str:
    scheduler, grace = job.scheduler, grace_steps(job, space)
    if "scheduler" in job.search.named:
        return f"trials may be stopped early or paused by {job.search.named['scheduler']}"
    if scheduler == "none":
        return "no trial is stopped early"
    if grace >= job.train.steps:
        return f"no trial is stopped early: {scheduler} waits {grace} steps (search.grace_steps)"
    at = f" at {', '.join(map(str, rungs(job, space)))}" if scheduler == "asha" else ""
    return f"trials may be stopped early after {grace} of {job.train.steps} steps ({scheduler}, compared{at} by score)"


def plan_concurrency(job: JobConfig, *, most: int | None = None) -> Concurrency:
    """How many runs of a resolved job can run at a time: as many as CPUs, GPUs, memory and ``max_concurrent`` allow,
    at most ``most``.

    Raises:
        ConfigError: the model or corpus does not exist, there are too few resources, or a run does not fit in memory.
    """
    task = load_task(job.run())
    possible = resource_concurrency(job, _resources(job))
    return memory_concurrency(
        job, task, memory_need(job.run(), task), _device(job), most=min(possible, most or possible)
    )


def plan_memory(job: JobConfig, *, gibibytes: float) -> MemoryPlan:
    """Whether one worker of a job fits on a device with that much free memory, which this machine need not have.

    Raises:
        ConfigError: the model or corpus does not exist.
    """
    job, free = resolve_device(job), int(gibibytes * 2**30)
    load_task(job.run())
    if job.train.micro_batch_size == "auto":
        job = resolve_micro_batch(job, free)
    return MemoryPlan(job=job, task=load_task(job.run()), room=free)


def most_at_a_time(job: JobConfig) -> int:
    """Maximum number of runs of a study at a time: ``max_concurrent``, else a quarter of the trials, because a sampler
    learns from trials that have ended. If all started at once, any sampler could only draw at random after the presets.
    """
    return job.resources.max_concurrent or max(2, job.search.trials // 4)


def _resources(job: JobConfig) -> Resources:
    if job.resources.address == "local":
        temporary_root()  # raises before anything is written if Ray can't store its files
        return local_resources()
    with ray_session(job) as there:
        return there


def run_cache(job: JobConfig) -> RunCache:
    """Where baseline and frontier runs are kept between studies."""
    return RunCache(root=cache_root(job.data.cache_dir) / "runs")


def _step_seconds(job: JobConfig, task: Task) -> tuple[float, bool]:
    """Seconds of a real step of one worker, and whether they were measured."""
    run = baseline(job.run())
    key = baseline_key(run, corpus=task.fingerprint, machine=machine(run, _device(job)))
    kept = read_result(run_cache(job).root / key)
    return (_probe(job, task), False) if kept is None else (kept.step_seconds, True)


def _probe(job: JobConfig, task: Task) -> float:
    """Estimated seconds of a step: its FLOPs / the measured rate of a matrix product with the model's sizes.

    For a task without a `MatmulProbe`, a gradient is timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(job.train.threads)
    try:
        probe = task.matmul_probe()
        if probe is None:
            return job.run().accumulate * min(_timed_gradient(job, task) for _ in range(3))
        return _product_seconds(job, probe)
    finally:
        torch.set_num_threads(threads)


def _product_seconds(job: JobConfig, probe: MatmulProbe) -> float:
    run, device = job.run(), _device(job)
    length = min(_PROBE_ROWS[device.type], run.micro_batch_size * probe.rows)
    kind = (AUTOCAST[job.train.precision] if device.type == "cuda" else None) or torch.float32
    left = torch.randn(length, probe.width, device=device, dtype=kind)
    right = torch.randn(probe.width, 4 * probe.width, device=device, dtype=kind)
    seconds = min(_timed_product(left, right) for _ in range(3))
    rate = 2 * length * probe.width * 4 * probe.width / seconds
    return _OVERHEAD * probe.flops * (job.train.batch_size // job.resources.workers) / rate


def _timed_gradient(job: JobConfig, task: Task) -> float:
    """Seconds of one micro-batch's forward and backward."""
    run, device = job.run(), _device(job)
    model = task.build_model().to(device)
    batch = batch_to(task.sampler(batch_size=run.micro_batch_size, seed=job.seed).next(), device)
    synchronize(device)
    start = time.perf_counter()
    torch.autograd.backward(task.loss(model, batch))
    synchronize(device)
    return time.perf_counter() - start


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronize(left.device)
    start = time.perf_counter()
    left @ right
    synchronize(left.device)
    return time.perf_counter() - start


def _device(job: JobConfig) -> torch.device:
    return torch.device("cuda" if job.train.device == "cuda" and torch.cuda.is_available() else "cpu")


def duration(seconds: float) -> str:
    """Seconds as text: ``90 s``, ``14 min``, ``3.2 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
