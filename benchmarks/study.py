"""Overhead of a study: the time to a trial's first step, and the processors' time in which no run is at work, by cause.

    python benchmarks/study.py [first_step] [cores] [--trials 100] [--steps 1900]

``first_step``: seconds from the request of a trial to its first nominal step, in the trial's own process and with a
TorchTrainer of two workers. Calibration, which trains too, is shown separately. About four minutes.
``cores``: a study of 100 trials on all processors. From start to end, a processor that works on no run is lost; the
table says in which part of the study. With 1,900 steps a trial takes 19 s, half of a trial of jobs/local.yaml, and the
study 17 minutes on two idle processors. The loss does not depend on the length of a trial, so its share is larger with
fewer steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LOCAL = Path(__file__).parents[1] / "jobs/local.yaml"
NO_CONFIRMATION = ("search.scheduler=none", "confirm.best=0")
SHORT = ("train.steps=60", "hybrid.warmup_steps=10", "search.trials=4", *NO_CONFIRMATION)
TINY = (
    "model.preset=micro",
    "train.sequence_length=32",
    "data.heldout_tokens=16384",
    *NO_CONFIRMATION,
)

Times = tuple[float, float]


def study(folder: Path, *settings: str, command: str = "run") -> None:
    line = [sys.executable, "-m", "hybrid_ray.cli", command, str(LOCAL)]
    for setting in (*settings, f"studies_dir={folder}", f"data.cache_dir={folder / 'cache'}"):
        line += ["--set", setting]
    if subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit("the study failed: run it by hand to see the error")


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def first_step(run: Path) -> float:
    """When a run began its first step: the time of the file that is written right before."""
    return (run / "run.json").stat().st_mtime


def times(run: Path, *, earliest: float = 0.0) -> Times:
    """When a run began to prepare its first step, as its result says, and when it stored its result."""
    other = json.loads((run / "result.json").read_text())["other_seconds"]
    begin = first_step(run) - sum(other.get(name, 0.0) for name in ("setup", "compile", "calibration"))
    return max(earliest, begin), (run / "result.json").stat().st_mtime


def waits(folder: Path) -> list[Times]:
    """For each trial: seconds from its request to its first step, and the part of them spent in calibration."""
    found = []
    for row in trials_of(folder):
        run = folder / f"trials/{row['number']:04d}"
        calibration = json.loads((run / "result.json").read_text())["other_seconds"]["calibration"]
        found.append((first_step(run) - row["started"], calibration))
    return found


def lost(folder: Path, began: float, ended: float, slots: int) -> dict[str, float]:
    """Processor seconds between the start and the end of a command in which no run prepared, trained or evaluated, by
    part of the study.
    """
    rows = trials_of(folder)
    trials = sorted(times(folder / f"trials/{row['number']:04d}", earliest=row["started"]) for row in rows)
    plain = [times(path.parent) for name in ("baseline", "frontier") for path in (folder / name).rglob("result.json")]
    requests = [row["started"] for row in rows]
    parts = {
        "imports, plan, start of Ray": min(plain)[0],
        "baseline and frontier": min(requests),
        "start of the trials' processes": trials[slots - 1][0],
        "between trials": max(requests),
        "last trials": max(end for _, end in trials),
        "end of Ray, report": ended,
    }
    found, before = {}, began
    for part, until in parts.items():
        found[part] = idle([*plain, *trials], before, until, slots)
        before = until
    return found


def idle(runs: Iterable[Times], begin: float, end: float, slots: int) -> float:
    """Processor seconds between two times in which fewer than ``slots`` runs were at work."""
    return slots * (end - begin) - sum(max(0.0, min(end, last) - max(begin, first)) for first, last in runs)


def show_first_step(folder: Path) -> None:
    print("request to first step           median s   (range)        calibration part")
    for name, settings in (("in the trial", ()), ("TorchTrainer, 2 workers", ("resources.workers=2",))):
        place = folder / name.partition(",")[0].replace(" ", "-")
        study(place, *SHORT, *settings)
        seconds, calibration = zip(*waits(place / "local"), strict=True)
        spread = f"({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"{name:30}  {statistics.median(seconds):8.1f}   {spread:14} {statistics.median(calibration):.1f}")


def show_cores(folder: Path, trials: int, steps: int) -> None:
    tiny = (*TINY, f"train.steps={steps}")
    study(folder, *tiny, command="plan")  # prepares the text
    slots, began = len(os.sched_getaffinity(0)), time.time()
    study(folder, *tiny, f"search.trials={trials}", f"search.startup_trials={trials}")
    ended = time.time()
    found, total = lost(folder / "local", began, ended, slots), slots * (ended - began)
    minutes = (ended - began) / 60
    print(f"{trials} trials of {steps} steps, {slots} processors, {minutes:.1f} minutes: a run was at work in", end=" ")
    print(f"{1 - sum(found.values()) / total:.1%} of their time; the rest was lost in")
    for part, seconds in found.items():
        print(f"  {part:32} {seconds:6.1f} processor seconds, {seconds / total:5.1%}")
    seconds = sorted(wait for wait, _ in waits(folder / "local"))[:-slots]  # without the first trial of each process
    quartiles = statistics.quantiles(seconds, n=4)
    print(f"from a trial's end to the next one's first step: median {quartiles[1]:.2f} s", end=" ")
    print(f"({quartiles[0]:.2f} to {quartiles[2]:.2f}, at most {seconds[-1]:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="first_step, cores; default: both")
    parser.add_argument("--trials", type=int, default=100, help="of the study of `cores`")
    parser.add_argument("--steps", type=int, default=1900, help="nominal steps of each of these trials")
    arguments = parser.parse_args()
    parts = arguments.parts or ["first_step", "cores"]
    with tempfile.TemporaryDirectory() as folder:
        if "first_step" in parts:
            show_first_step(Path(folder, "first_step"))
        if "cores" in parts:
            show_cores(Path(folder, "cores"), arguments.trials, arguments.steps)


if __name__ == "__main__":
    main()
