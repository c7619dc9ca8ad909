"""A table of real runs that simulated studies look up instead of training.

``benchmarks/make_run_table.py`` trains the runs and writes the table. A lookup returns the whole `RunResult` of a real
run with the requested seed, so curves, noise, times and failures come from training, not from a formula.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from hybrid_ray.config import HybridConfig, JobConfig, RunConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict
from hybrid_ray.config.predictors import OPTIONS
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.runner import Task, failed_result
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.run_result import Replay, RunResult
from hybrid_ray.storage.json_files import differences

__all__ = ["Knobs", "RunTable", "write_run_table"]

_NAMES = ("confidence_threshold", "prediction_horizon", "correction_interval")
_SHARED = ("model", "data", "train", "hybrid", "frontier")
"""Sections of a job on which its runs depend. Not the objective: the table has raw numbers, scored at each use."""


class Knobs(NamedTuple):
    """One setting of the three knobs."""

    confidence_threshold: float
    prediction_horizon: int
    correction_interval: int

    @classmethod
    def of(cls, hybrid: HybridConfig) -> "Knobs":
        return cls(*(getattr(hybrid, name) for name in _NAMES))


T = TypeVar("T", int, float)

Key = tuple[str, int, int | Knobs]
"""Kind, seed, and length or knobs. All runs of real steps only have the kind "plain" and are identified by their
length, because baseline, frontier and ``equal_steps`` are the same training. ``lr_matched`` has its own learning rate,
so its own kind, and is identified by its length too. All other runs are identified by their knobs.
"""


def _today(job: dict[str, Any]) -> dict[str, Any]:
    """Convert a job from the older format, in which a predictor's options were settings of the method."""
    every = {option.name for kind in OPTIONS.values() for option in fields(kind)}
    hybrid = job["hybrid"]
    options = {name: hybrid.pop(name) for name in list(hybrid) if name in every}
    if isinstance(hybrid["predictor"], str):
        own = {option.name for option in fields(OPTIONS[hybrid["predictor"]])}
        hybrid["predictor"] = {"name": hybrid["predictor"]} | {k: v for k, v in options.items() if k in own}
    return job


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTable:
    """Real runs of one job.

    Args:
        job: the job of the runs; its knobs, seed, search and objective do not matter.
        ranges: the knobs' ranges in the search space from which the runs were made.
        runs: the results by key.
    """

    job: JobConfig
    ranges: Mapping[str, Mapping[str, Any]]
    runs: Mapping[Key, RunResult]

    @classmethod
    def read(cls, path: Path) -> "RunTable":
        """Read a file that `write_run_table` wrote. Raises `ConfigError` if there is none."""
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} holds no table of runs ({error}): make it with benchmarks/make_run_table.py"
            ) from error
        made_from = json.loads(table.schema.metadata[b"run_table"])
        return cls(
            job=job_from_dict(_today(yaml.safe_load(made_from["job"]))),
            ranges=made_from["ranges"],
            runs={_key_of(row): RunResult.from_dict(json.loads(row["result"])) for row in table.to_pylist()},
        )

    @property
    def searched_seeds(self) -> list[int]:
        """The seeds that have their own frontier, so that their runs can be scored."""
        lengths = [run.train.steps for run in frontier_runs(self.job).values()]
        seeds = {seed for kind, seed, _ in self.runs if kind == "hybrid"}
        return sorted(seed for seed in seeds if all(("plain", seed, length) in self.runs for length in lengths))

    @property
    def whole_seeds(self) -> list[int]:
        """The searched seeds with runs of the whole grid; a simulated study uses one of these."""
        counted = Counter(seed for kind, seed, _ in self.runs if kind == "hybrid")
        return [seed for seed in self.searched_seeds if counted[seed] == len(self.settings)]

    @property
    def settings(self) -> list[Knobs]:
        """The settings of the grid."""
        return sorted({knobs for kind, _, knobs in self.runs if kind == "hybrid" and isinstance(knobs, Knobs)})

    def check(self, job: JobConfig) -> None:
        """Raises `ConfigError` with every difference if studies of this job cannot be simulated."""
        mine, its = _defining(self.job, self.ranges), _defining(job, load_space(job).ranges)
        problems = differences(mine, its)
        if job.seed not in self.whole_seeds:
            problems.append(f"seed is {job.seed} but the table has the whole grid for seeds {self.whole_seeds} only")
        if problems:
            first = "the table of runs is of another job than the one to be simulated"
            last = (
                "simulate the table's own job (RunTable.job), or make a table of this one: benchmarks/make_run_table.py"
            )
            raise ConfigError([first, *problems, last])

    def snap(self, hybrid: HybridConfig) -> Knobs:
        """The setting of the grid that represents these settings.

        First the nearest horizon, then the nearest interval that the grid has with it, both on a log scale; then the
        nearest threshold. Of two equally near values the smaller one is used. An interval that the horizon never
        reaches means no micro-correction, which is interval 0. Interval 0 is only represented by 0.
        """
        asked, there = Knobs.of(hybrid), self.settings
        horizon = _nearest({knobs.prediction_horizon for knobs in there}, asked.prediction_horizon, math.log)
        there = [knobs for knobs in there if knobs.prediction_horizon == horizon]
        interval = asked.correction_interval if asked.correction_interval < asked.prediction_horizon else 0
        intervals = {knobs.correction_interval for knobs in there if (knobs.correction_interval > 0) == (interval > 0)}
        interval = _nearest(intervals, interval, math.log) if interval and intervals else 0
        there = [knobs for knobs in there if knobs.correction_interval == interval]
        threshold = _nearest({knobs.confidence_threshold for knobs in there}, asked.confidence_threshold, float)
        return Knobs(threshold, horizon, interval)

    def result(self, run: RunConfig) -> RunResult:
        """The real run that represents this one; a failed result if the table has none."""
        found = self.runs.get(self._key(run))
        if found is None:
            settings = f" of {self.snap(run.hybrid)}" if run.hybrid.predictor.name != "none" else ""
            return failed_result(run, f"the table has no {run.arm} run{settings} with seed {run.seed}")
        return replace(found, arm=run.arm)

    def execute(self, tasks: Sequence[Task]) -> list[RunResult]:
        """An ``Execute`` that looks the results up."""
        return [self.result(task.run) for task in tasks]

    def with_gain(self, faster: float, *, loss: float = 1.0) -> "RunTable":
        """A copy with an artificial gain: the time of every hybrid run is divided by ``faster``, its losses are
        multiplied by ``loss``. The controls do not change.
        """
        runs = {key: _gained(run, faster, loss) if key[0] == "hybrid" else run for key, run in self.runs.items()}
        return replace(self, runs=runs)

    def _key(self, run: RunConfig) -> Key:
        if run.hybrid.predictor.name == "none":
            return _plain_kind(run.arm), run.seed, run.train.steps
        return run.arm, run.seed, self.snap(run.hybrid)


def write_run_table(path: Path, job: JobConfig, runs: Iterable[tuple[Mapping[str, Any], RunResult]]) -> None:
    """Write runs (the content of their ``run.json`` and their result) as one Parquet file with one row per run.

    The main numbers are columns; the whole result is JSON. Values that only a report shows (machine, statistics, norms
    of jumps, seconds by part) are left out, as are runs that failed or were stopped.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [_row(run, result) for run, result in runs if result.status in ("finished", "diverged")]
    made_from = {"job": dump_job(job), "ranges": load_space(job).ranges}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"run_table": json.dumps(made_from)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, compression="zstd", compression_level=19)


def _row(run: Mapping[str, Any], result: RunResult) -> dict[str, Any]:
    plain = run["hybrid"]["predictor"]["name"] == "none"
    kept = replace(
        result,
        part_seconds={},
        other_seconds={},
        machine={},
        statistics={},
        replay=Replay(phases=result.replay.phases, norms=()),
    )
    return {
        "kind": _plain_kind(run["arm"]) if plain else run["arm"],
        "seed": run["seed"],
        "steps": run["train"]["steps"],
        **{name: None if plain else run["hybrid"][name] for name in _NAMES},
        "status": result.status,
        "time": result.time,
        "predicted_share": result.predicted_share,
        **{f"{split}_loss": heldout.loss for split, heldout in result.heldout.items()},
        "result": json.dumps(kept.as_dict()),
    }


def _plain_kind(arm: str) -> str:
    """The kind of a run of real steps only."""
    return "lr_matched" if arm == "lr_matched" else "plain"


def _key_of(row: Mapping[str, Any]) -> Key:
    if row["kind"] in ("plain", "lr_matched"):
        return row["kind"], row["seed"], row["steps"]
    return row["kind"], row["seed"], Knobs(*(row[name] for name in _NAMES))


def _defining(job: JobConfig, ranges: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values that two jobs must share so that the runs of one can represent runs of the other."""
    parts: dict[str, Any] = {name: asdict(getattr(job, name)) for name in _SHARED}
    parts["data"].pop("cache_dir")
    for name in _NAMES:
        parts["hybrid"].pop(name)
    plain: dict[str, Any] = json.loads(json.dumps({**parts, "search": {"space": job.search.space, "ranges": ranges}}))
    return plain


def _nearest(there: Iterable[T], asked: float, scale: Callable[[float], float]) -> T:
    return min(sorted(there), key=lambda value: abs(scale(value) - scale(asked)))


def _gained(run: RunResult, faster: float, loss: float) -> RunResult:
    """A run with an artificial gain; the cost of a plain step, the unit of time, does not change."""
    curve = tuple(
        replace(point, loss=point.loss * loss, train_seconds=point.train_seconds / faster, time=point.time / faster)
        for point in run.curve
    )
    heldout = {split: replace(found, loss=found.loss * loss) for split, found in run.heldout.items()}
    seconds = {phase: spent / faster for phase, spent in run.phase_seconds.items()}
    return replace(run, phase_seconds=seconds, curve=curve, heldout=heldout)
