"""What a study costs beyond its training: real Ray trials of a task that does almost nothing.

    python benchmarks/scale.py [TRIALS ...]          # default: 10 100 1000

Prints for each number of trials:

- the driver's processor time for one result, from the first trial to the last;
- how long a whole trial takes, which is all overhead here, and how long its place stays empty before the next one;
- the driver's largest resident memory, and the files and bytes of the study.

A trial takes a few tenths of a second on an idle core, so a thousand of them take several minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

TASK = '''
"""A task that does almost nothing: a linear model of two weights on eight numbers."""

import torch
import torch.nn.functional as F

from hybrid_ray import Task


class NoOp(Task):
    unit, measure = "point", "squared error"

    def build_model(self):
        return torch.nn.Linear(1, 1)

    def datasets(self):
        x = torch.linspace(-1, 1, 8)[:, None]
        return dict.fromkeys(("train", "val", "test"), torch.utils.data.TensorDataset(x, 2 * x))

    def loss(self, model, batch):
        x, y = batch
        return F.mse_loss(model(x), y)
'''
JOB = """
name: scale
studies_dir: .
task: {factory: no_op:NoOp}
train: {steps: 10, batch_size: 4, evaluations: 1, calibration_steps: 5, learning_rate: 0.01}
hybrid: {predictor: slow_momentum, gate: always, warmup_steps: 0, full_steps: 3, correct_steps: 0}
objective: {max_degradation: 100.0}
search: {space: slow_momentum, scheduler: none, startup_trials: 4}
confirm: {best: 0}
"""
COLUMNS = ("trials", "minutes", "driver ms/result", "trial s", "empty s", "driver MiB", "files", "files/trial", "MiB")


def measure(folder: Path, trials: int) -> dict[str, float]:
    """Run a study of so many trials in the folder; what it cost, by the names in COLUMNS."""
    (folder / "no_op.py").write_text(TASK)
    (folder / "scale.yaml").write_text(JOB)
    started = time.monotonic()
    command = [sys.executable, "-m", "hybrid_ray.cli", "run", "scale.yaml", "--set", f"search.trials={trials}"]
    log = folder / "log"  # not a pipe: nobody reads it meanwhile, and a full one blocks the driver
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr)
    study, driver = folder / "scale", psutil.Process(process.pid)
    before, used, memory = 0.0, 0.0, 0
    while process.poll() is None:
        try:
            now, memory = sum(driver.cpu_times()[:2]), max(memory, driver.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if (study / "plots").exists() or (study / "report.md").exists():  # the last trial has ended
            pass
        elif (study / "trials.jsonl").exists():
            used = now
        else:
            before = now
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"the study failed:\n{log.read_text()}")
    minutes = (time.monotonic() - started) / 60
    rows = [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
    files = [path for path in study.rglob("*") if path.is_file()]
    in_trials = [path for path in files if path.is_relative_to(study / "trials")]
    return {
        "trials": len(rows),
        "minutes": minutes,
        "driver ms/result": 1000 * (used - before) / len(rows),
        "trial s": median(row["ended"] - row["started"] for row in rows),
        "empty s": median(_gaps(rows)),
        "driver MiB": memory / 2**20,
        "files": len(files),
        "files/trial": len(in_trials) / len(rows),
        "MiB": sum(path.stat().st_size for path in files) / 2**20,
    }


def _gaps(rows: list[dict[str, float]]) -> list[float]:
    """Seconds from the end of each trial to the start of the next one that had not started by then."""
    starts = sorted(row["started"] for row in rows)
    gaps = []
    for end in sorted(row["ended"] for row in rows):
        later = [start for start in starts if start >= end]
        if later:
            gaps.append(later[0] - end)
            starts.remove(later[0])
    return gaps or [0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", type=int, default=[10, 100, 1000])
    options = parser.parse_args()
    print("  ".join(f"{name:>16}" for name in COLUMNS))
    for trials in options.trials:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), trials)
        print("  ".join(f"{found[name]:16.4g}" for name in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
