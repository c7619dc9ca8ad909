"""What a job will cost, and whether it fits: `plan`. Trains nothing.

Time comes from a cached baseline of this very job where there is one (measured), else from the model's FLOPs and a
short matrix-product probe at the model's own sizes (estimated). The plan says which.
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
from hybrid_ray.ray_tune.cluster import Resources, local_resources, ray_session, resource_concurrency, temporary_root
from hybrid_ray.ray_tune.scheduler import grace_steps, rungs
from hybrid_ray.ray_tune.space import SearchSpace, load_space
from hybrid_ray.storage.run_cache import RunCache, baseline_key, read_result
from hybrid_ray.study.concurrency import Concurrency, free_memory, memory_concurrency, room, sharing
from hybrid_ray.study.run_counts import Stage, comparison_stages, stages
from hybrid_ray.study.stopping import check_budget
from hybrid_ray.tasks import Task, load_task
from hybrid_ray.tasks.task import AUTOCAST, MatmulProbe, batch_to
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.setup import synchronize

__all__ = ["Plan", "Stage", "plan", "plan_concurrency", "plan_memory", "resolve_auto", "run_cache"]

_OVERHEAD = 2.0  # a step takes this many times its matrix products' time: norms, softmax, optimizer, Python
_PROBE_ROWS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a job costs. Seconds are wall time on ``concurrency`` runs side by side; bytes are those of the device
    that trains.
    """

    stages: tuple[Stage, ...]
    compared: tuple[Stage, ...]  # those of `hybrid-ray compare`; none where the job says nothing of it
    run: RunConfig
    concurrency: Concurrency
    step_seconds: float
    measured: bool
    probe: str  # how the seconds were estimated, if they were
    device: str
    stops: str  # when trials may be stopped, in words

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def seconds(self, stage: Stage) -> float:
        """Wall time of a stage. Whole rounds: the last run of a stage has nobody beside it."""
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
        how = "measured: a cached baseline" if self.measured else f"estimated: {self.probe}"
        yield f"{1000 * self.step_seconds:.3g} ms a real step ({how})"
        yield f"{self.concurrency.runs} runs side by side on {self.device}"
        yield self.stops
        yield from memory_lines(self.run, self.concurrency.need)
        there, needed = size_text(self.concurrency.there), size_text(self.concurrency.needed)
        yield f"{self.concurrency.sharing} side by side need {needed} of {there} that are free"

    def _table(self, title: str, stages: Sequence[Stage]) -> Iterator[str]:
        yield f"{title:<14}{'runs':>6}{'steps':>12}{'time':>12}"
        for stage in stages:
            yield f"{stage.name:<14}{stage.runs:>6}{stage.steps:>12,}{_duration(self.seconds(stage)):>12}"
        runs, steps = (sum(getattr(stage, name) for stage in stages) for name in ("runs", "steps"))
        yield f"{'in all':<14}{runs:>6}{steps:>12,}{_duration(sum(map(self.seconds, stages))):>12}"


def resolve_auto(job: JobConfig) -> JobConfig:
    """The job with what the machine decides filled in: a worker's GPUs, the device, and an open micro-batch.

    The micro-batch is the largest that fits beside as many runs as a search has side by side, whichever command asks:
    so it is one for all of them. It is written with the job, and stays when free memory is another.

    Raises:
        ConfigError: the device and the number of GPUs contradict each other, or the micro-batch is open and its
            device is not here.
    """
    job = resolve_device(job)
    if job.train.micro_batch_size == "auto":
        job = resolve_micro_batch(job, _free_for_one(job))
    return job


def _free_for_one(job: JobConfig) -> int:
    """Bytes for each worker when as many share the device as may."""
    load_task(job.run())
    check_open_micro_batch(job)
    runs = min(resource_concurrency(job, local_resources()), job.resources.max_concurrent or _most_trials(job))
    device = _device(job)
    return room(free_memory(device), device) // sharing(job, runs)


def resolve_device(job: JobConfig) -> JobConfig:
    """The job with a worker's GPUs filled in, and the device, which follows from them.

    Open GPUs are 1 where the device is cuda, or open too on a machine with GPUs for all workers of a run; else 0. A
    cluster is not asked: a job for one says what it wants, else it gets processors. An open device is then what there
    are GPUs for. Runs carry that, so that one job's runs have one key in the cache, whichever command trains them. A
    resolved job stays as it is, on any machine.

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
            f"train.device is 'cpu' but resources.gpus_per_worker is {gpus:g}, which runs would hold and not use: "
            "set gpus_per_worker to 0, or train.device to cuda"
        )
    return replace(job, train=replace(train, device=device), resources=replace(job.resources, gpus_per_worker=gpus))


def _gpus_for_all_workers(resources: ResourcesConfig) -> bool:
    here = resources.address == "local" and torch.cuda.is_available()
    return here and torch.cuda.device_count() >= resources.workers


def plan(job: JobConfig) -> Plan:
    """Cost and fit of a job where it would run: this machine, or the cluster it names (which is asked what it has).

    Raises:
        ConfigError: the model, space or corpus is not there, the resources can't be had, a budget limits nothing, or it
            does not fit in memory.
    """
    job = resolve_auto(job)
    check_budget(job)
    space = load_space(job)
    check_search(job, space)
    check_arms(job)
    found = plan_concurrency(job, most=job.resources.max_concurrent or _most_trials(job))
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
        probe="FLOPs and a matrix-product probe" if task.matmul_probe() else "a timed gradient",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "processors",
        stops=_stops(job, space),
    )


def _stops(job: JobConfig, space: SearchSpace) -> str:
    scheduler, grace = job.search.scheduler, grace_steps(job, space)
    if "scheduler" in job.search.named:
        return f"trials may be stopped or paused by {job.search.named['scheduler']}"
    if scheduler == "none":
        return "no trial is stopped early"
    if grace >= job.train.steps:
        return f"no trial is stopped early: {scheduler} waits {grace} steps (search.grace_steps)"
    at = f" at {', '.join(map(str, rungs(job, space)))}" if scheduler == "asha" else ""
    by = "the net speedup they are heading for" if job.objective.mode == "net" else "score"
    return f"trials may be stopped after {grace} of {job.train.steps} steps ({scheduler}, compared{at} by {by})"


def plan_concurrency(job: JobConfig, *, most: int | None = None) -> Concurrency:
    """How many runs of a resolved job go side by side where it would run: as many as its processors, GPUs, memory and
    ``max_concurrent`` allow, and no more than ``most``.

    Raises:
        ConfigError: the model or corpus is not there, the resources can't be had, or it does not fit in memory.
    """
    task = load_task(job.run())
    possible = resource_concurrency(job, _resources(job))
    return memory_concurrency(
        job, task, memory_need(job.run(), task), _device(job), most=min(possible, most or possible)
    )


def plan_memory(job: JobConfig, *, gibibytes: float) -> MemoryPlan:
    """Whether one worker of a job fits on a device with that much free memory, which need not be here.

    Raises:
        ConfigError: the model or corpus is not there.
    """
    job, free = resolve_device(job), int(gibibytes * 2**30)
    load_task(job.run())
    if job.train.micro_batch_size == "auto":
        job = resolve_micro_batch(job, free)
    return MemoryPlan(job=job, task=load_task(job.run()), room=free)


def _most_trials(job: JobConfig) -> int:
    """Side by side at most a quarter of the trials: a sampler learns from trials that have ended.

    With all of them asked at once, a search would be its presets and random draws, whatever sampler it names.
    """
    return max(2, job.search.trials // 4)


def _resources(job: JobConfig) -> Resources:
    if job.resources.address == "local":
        temporary_root()  # what Ray will need, asked before anything is written
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
    return (_probe(job, task), False) if kept is None else (kept.calibration, True)


def _probe(job: JobConfig, task: Task) -> float:
    """FLOPs of a step over the rate of a product as wide as the model and as long as a micro-batch.

    Of a task that gives no such numbers, a gradient is timed.
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
    if left.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    left @ right
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _device(job: JobConfig) -> torch.device:
    return torch.device("cuda" if job.train.device == "cuda" and torch.cuda.is_available() else "cpu")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
