"""Compare whole configurations: the job's own baseline and hybrid, and ``compare.variants``.

A variant may change more than prediction (precision, batch, memory). Another batch or precision changes the cost of a
step, so time is measured in raw seconds here, not in a run's own real steps. The runs of one seed start together, in an
order that differs between seeds, and are paired; the interval over seeds shows how much of a ratio is noise. Each
variant is compared with its own settings without prediction, so that a gain from batch or precision is not credited to
the method. If those settings equal the job's own baseline, the variant also has a net speedup over stopping early.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, Split
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.runner import Task
from hybrid_ray.evaluation.summary import net_speedup, paired_ratio
from hybrid_ray.run_result import RunResult

__all__ = ["Runs", "configurations", "variant_runs", "variant_tasks"]

Runs = dict[int, RunResult]
"""Results by seed."""

_PLAIN = "{}_plain"
"""Name of the runs with a variant's settings but without prediction."""


def variant_tasks(
    job: JobConfig, variants: Mapping[str, JobConfig], seeds: Sequence[int], directory: Path
) -> dict[str, list[Task]]:
    """Tasks by name: each variant on every seed, and the same without prediction unless that is the job's baseline."""
    tasks: dict[str, list[Task]] = {}
    for name, variant in variants.items():
        for seed in seeds:
            run, folder = variant.run(arm="hybrid", seed=seed), directory / name
            tasks.setdefault(name, []).append(Task(run=run, directory=folder / f"hybrid-{seed}"))
            if baseline(run) != baseline(job.run(seed=seed)):
                plain = Task(run=baseline(run), directory=folder / f"baseline-{seed}")
                tasks.setdefault(_PLAIN.format(name), []).append(plain)
    return tasks


def variant_runs(tasks: Mapping[str, Sequence[Task]], results: Sequence[RunResult]) -> dict[str, Runs]:
    """Results by name and seed. ``results`` are those of all tasks, in the order of ``tasks``."""
    rest = iter(results)
    return {name: {task.run.seed: next(rest) for task in several} for name, several in tasks.items()}


def configurations(
    runs: Mapping[str, Runs],
    variants: Mapping[str, Mapping[str, Any]],
    split: Split,
    *,
    level: float,
    frontier: Frontier,
    net: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The configurations as in ``comparison.json``, JSON-ready: the runs and the ratios of each.

    Args:
        runs: ``baseline``, ``hybrid``, and each variant with and without prediction (`variant_runs`).
        variants: the settings of each variant.
        net: the hybrid's net speedup.
        frontier: of the job's own settings. A variant that differs from them only in prediction has a net speedup over
            this frontier, placed by the baseline of its seed. No frontier was run for the others: theirs is None.

    Runs that fell back at their start to other settings than their runs without prediction count as failed.
    """
    plains = {name: _PLAIN.format(name) for name in variants}
    plain_of = {"hybrid": "baseline"} | {name: plain if plain in runs else "baseline" for name, plain in plains.items()}
    of_plain = {plain: name for name, plain in plains.items()}
    runs = {
        name: dict(
            zip(own, comparable(own.values(), fingerprint_of(runs[plain_of.get(name, name)].values())), strict=True)
        )
        for name, own in runs.items()
    }
    nets = {"hybrid": net} | {
        name: net_speedup({"baseline": runs["baseline"], "hybrid": runs[name]}, frontier, split, level=level)
        for name in variants
        if plain_of[name] == "baseline"
    }
    return [
        {
            "name": name,
            "predicts": name in plain_of,
            "settings": dict(variants.get(of_plain.get(name, name), {})),
            "runs": [account(result, split) for _, result in sorted(results.items())],
            "ratios": _ratios(runs, name, plain_of.get(name), split, level),
            "net_speedup": nets.get(name),
        }
        for name, results in runs.items()
    ]


def _ratios(
    runs: Mapping[str, Runs], name: str, plain: str | None, split: Split, level: float
) -> dict[str, dict[str, Any]]:
    """Ratios to the job's baseline, and to the same settings without prediction, paired by seed; in raw seconds."""
    values: dict[str, Callable[[RunResult], float]] = {
        "speedup": lambda result: 1 / result.train_seconds,
        "throughput": _tokens_per_second,
        "loss": lambda result: result.heldout[split].loss,
    }
    others = {"baseline": "baseline" if name != "baseline" else None, "plain": plain}
    return {
        f"{what}_vs_{other}": paired_ratio(runs[name], runs[against], value, level)
        for other, against in others.items()
        if against is not None
        for what, value in values.items()
    }


def account(result: RunResult, split: Split) -> dict[str, Any]:
    """One run in raw numbers: seconds, losses, tokens per second, memory (bytes), shares and seconds per step by phase.

    Values that a run has only once it has finished are None otherwise.
    """
    done, steps = result.status == "finished", max(1, result.steps)
    heldout = result.heldout[split] if done else None
    return {
        "seed": result.seed,
        "status": result.status,
        "error": result.error,
        "train_seconds": result.train_seconds if done else None,
        "step_seconds": result.train_seconds / steps if done else None,
        "tokens_per_second": _tokens_per_second(result) if done else None,
        "nominal_tokens_per_second": _tokens_per_second(result) * steps / result.real_steps if done else None,
        "loss": heldout.loss if heldout else None,
        "accuracy": heldout.accuracy if heldout else None,
        "first_train_loss": result.statistics.get("first_loss"),
        "last_train_loss": result.statistics.get("last_loss"),
        "predicted_share": result.predicted_share if done else None,
        "highest_confidence": result.statistics.get("highest_confidence"),
        "calibration": result.statistics.get("calibration"),
        "diverged": result.status == "diverged",
        **_memory(result),
        "phase_steps": dict(result.phase_steps),
        "phase_shares": {phase: count / steps for phase, count in result.phase_steps.items()},
        "phase_step_seconds": {
            phase: result.phase_seconds[phase] / count for phase, count in result.phase_steps.items() if count
        },
    }


def _tokens_per_second(result: RunResult) -> float:
    """Tokens (or pictures) that were actually read, per training second."""
    return result.tokens_read / result.train_seconds


def _memory(result: RunResult) -> dict[str, Any]:
    """Memory in bytes: between steps at the start and at the end of the run, and the peak.

    On a GPU the peak is the allocator's own. On a CPU it is the maximum of samples taken between steps, at every 16th
    step, of a process that may have trained other runs before.
    """
    peaks = [peak["allocated"] for peak in result.statistics.get("memory", {}).values()]
    most = max([*peaks, result.machine.get("most_memory_bytes") or 0]) or None
    return {
        "first_memory_bytes": result.machine.get("first_memory_bytes"),
        "last_memory_bytes": result.machine.get("last_memory_bytes"),
        "most_memory_bytes": most,
    }
