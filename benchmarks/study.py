"""Overhead of a study: the time to a trial's first step, and how long all cores are training.

    python benchmarks/study.py [first_step] [cores]

``first_step``: seconds from the request of a trial to its first nominal step, in the trial's own process and with a
TorchTrainer of two workers. Calibration, which trains too, is shown separately. About four minutes.
``cores``: runs jobs/local.yaml (about six minutes) and checks twice a second which of its processes are computing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LOCAL = Path(__file__).parents[1] / "jobs/local.yaml"
BUSY = 0.5  # share of a core above which a process is computing
SHORT = ("train.steps=60", "hybrid.warmup_steps=10", "search.trials=4", "search.scheduler=none", "confirm.best=0")


def study(folder: Path, *settings: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hybrid_ray.cli", "run", str(LOCAL), "--set", f"studies_dir={folder}"]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def first_step(folder: Path, *settings: str) -> list[tuple[float, float]]:
    """For each trial: seconds from its request to its first step, and the part of them spent in calibration."""
    if study(folder, *SHORT, *settings).wait():
        raise SystemExit("the study failed: run it by hand to see the error")
    rows = [json.loads(line) for line in (folder / "local/trials.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        run = folder / "local/trials" / f"{row['number']:04d}"
        began = (run / "run.json").stat().st_mtime  # written right before the first step
        calibration = json.loads((run / "result.json").read_text())["other_seconds"]["calibration"]
        found.append((began - row["started"], calibration))
    return found


def busy_processes(driver: psutil.Process, seen: dict[int, float], seconds: float) -> int:
    """How many child processes of the driver computed for more than half of the last ``seconds``."""
    busy = 0
    for child in driver.children(recursive=True):
        try:
            used = sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
        busy += used - seen.get(child.pid, used) > BUSY * seconds
        seen[child.pid] = used
    return busy


def cores(folder: Path) -> tuple[float, float, float]:
    """Minutes of the whole study, and the share of them in which all cores, and at least one, were computing."""
    started = time.monotonic()
    process = study(folder)
    driver, seen, counts, last = psutil.Process(process.pid), {}, [], time.monotonic()
    while process.poll() is None:
        time.sleep(0.5)
        now = time.monotonic()
        try:
            counts.append(busy_processes(driver, seen, now - last))
        except psutil.NoSuchProcess:
            break
        last = now
    available = len(psutil.Process().cpu_affinity())
    minutes = (time.monotonic() - started) / 60
    return minutes, *(statistics.mean(count >= wanted for count in counts) for wanted in (available, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="first_step, cores; default: both")
    parts = parser.parse_args().parts or ["first_step", "cores"]
    with tempfile.TemporaryDirectory() as folder:
        if "first_step" in parts:
            print("request to first step           median s   (range)        calibration part")
            for name, settings in (("in the trial", ()), ("TorchTrainer, 2 workers", ("resources.workers=2",))):
                found = first_step(Path(folder, name.split(",")[0].replace(" ", "-")), *settings)
                waits = [wait for wait, _ in found]
                calibration = statistics.median(part for _, part in found)
                spread = f"({min(waits):.1f} to {max(waits):.1f})"
                print(f"{name:30}  {statistics.median(waits):8.1f}   {spread:14} {calibration:.1f}")
        if "cores" in parts:
            minutes, every, one = cores(Path(folder, "cores"))
            print(
                f"jobs/local.yaml: {minutes:.1f} minutes; all cores compute in {every:.0%}, at least one in {one:.0%}"
            )


if __name__ == "__main__":
    main()
