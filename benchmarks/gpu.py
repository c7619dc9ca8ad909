"""Make all measurements that need a GPU with one command.

    python benchmarks/gpu.py [--sections NAME ...] [--minutes 9] [--folder gpu_figures]
    python benchmarks/gpu.py --cpu          a rehearsal on a CPU with tiny sizes; its numbers mean nothing

Each section is a benchmark of this folder in its own process, so a failure or lack of memory does not affect the
others. Its output goes to NAME.log in the folder (default: $OUT, else ./gpu_figures), its numbers to NAME.json; the
last lines of every log are printed at the end. A section that still runs when the minutes are over gets a signal to
stop and is killed if it does not. Needs PyTorch and this repository, but no Ray, Optuna or network. The text is the
source code of the running Python, prepared on first use (under a minute).

Exit code 0: all requested sections are done; 1: some failed or had no time left; 2: PyTorch finds no GPU.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import folder, table

HERE = Path(__file__).parent
GRACE = 20.0  # seconds that a section has to end after the signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A benchmark and its arguments. ``minutes``: on an H200; a rough estimate but for predictor and steps."""

    script: str
    gpu: Sequence[str]
    cpu: Sequence[str]
    minutes: float
    figures: bool = True  # takes --json
    lines: int = 12  # of its log printed at the end


SECTIONS = {
    "predictor": Section(
        script="predictor_cost.py", gpu=["stream"], cpu=["stream"], minutes=0.5, figures=False, lines=8
    ),
    "throughput": Section(
        script="throughput.py",
        gpu=["--presets", "124M", "--against", "whole", "loop", "--pairs", "8"],
        cpu=["--cpu", "--presets", "micro", "--against", "loop", "--pairs", "2"],
        minutes=2.5,
        lines=4,
    ),
    "steps": Section(script="step_times.py", gpu=[], cpu=["--cpu", "--sizes", "micro"], minutes=1.5, lines=42),
    "memory": Section(
        script="memory.py",
        gpu=[],
        cpu=["--cpu", "--preset", "micro", "--steps", "40", "--cases", "baseline", "hybrid"],
        minutes=3.5,
        lines=18,
    ),
    "350M": Section(
        script="memory.py",
        gpu=["--large", "350M"],
        cpu=["--cpu", "--large", "micro"],
        minutes=0.7,
        figures=False,
        lines=4,
    ),
    "1.5B": Section(
        script="memory.py",
        gpu=["--large", "1.5B"],
        cpu=["--cpu", "--large", "micro"],
        minutes=6.0,
        figures=False,
        lines=4,
    ),
    "1.5B-host": Section(
        script="memory.py",
        gpu=["--large", "1.5B-host"],
        cpu=["--cpu", "--large", "micro"],
        minutes=9.0,
        figures=False,
        lines=4,
    ),
    "throughput-large": Section(
        script="throughput.py",
        gpu=["--presets", "350M", "774M", "1.5B", "--against", "whole", "--pairs", "8"],
        cpu=["--cpu", "--presets", "micro", "--against", "whole", "--pairs", "2"],
        minutes=6.0,
        lines=4,
    ),
    "findings": Section(
        script="gpu_findings.py",
        gpu=["--minutes", "7"],
        cpu=["--cpu", "--minutes", "0.1", "--processes", "2"],
        minutes=9.0,
        lines=30,
    ),
    "guide": Section(
        script="guide.py", gpu=["--measure"], cpu=["--cards", "80", "--models", "124M"], minutes=7.0, lines=14
    ),
}


def run(name: str, *, cpu: bool, seconds: float, kept: Path) -> str:
    """Run one section with its output in the folder; returns how it ended."""
    section = SECTIONS[name]
    command = [sys.executable, str(HERE / section.script), *(section.cpu if cpu else section.gpu)]
    if section.figures:
        command += ["--json", str(kept / f"{name}.json")]
    path = os.pathsep.join(part for part in (str(HERE.parent), os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with (kept / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return _stopped(process)
    return "done" if code == 0 else f"failed with exit code {code}"


def _stopped(process: subprocess.Popen[bytes]) -> str:
    """Stop a section: a training run ends cleanly after SIGTERM; compiler workers ignore it and are killed."""
    process.terminate()
    try:
        process.wait(timeout=GRACE)
        ended = "stopped when its time was over"
    except subprocess.TimeoutExpired:
        ended = "killed when its time was over"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS], metavar="NAME", help=_about())
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sections together")
    parser.add_argument("--folder", help="where logs and figures go")
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU")
    options = parser.parse_args(arguments)
    if not options.cpu and (missing := _no_gpu()):
        print(f"benchmarks/gpu.py needs a GPU, and there is no usable one ({missing}); --cpu rehearses it on a CPU")
        return 2
    kept, ended = folder(options.folder), {}
    until = time.monotonic() + 60 * options.minutes - GRACE
    for name in options.sections:
        left = until - time.monotonic()
        if left < 60 * SECTIONS[name].minutes / 3 and not options.cpu:
            ended[name] = "not started, no time left: run it with --sections " + name
            continue
        started = time.monotonic()
        ended[name] = run(name, cpu=options.cpu, seconds=left, kept=kept)
        ended[name] += f", {time.monotonic() - started:.0f} s"
        print(f"{name}: {ended[name]}", flush=True)
    for name in ended:
        log = kept / f"{name}.log"
        if log.exists():
            print(f"\n== {name}", *log.read_text(errors="replace").splitlines()[-SECTIONS[name].lines :], sep="\n")
    print("\n" + table(["section", "how it ended"], [[name, how] for name, how in ended.items()]))
    print(f"logs and figures: {kept}")
    return 0 if all(how.startswith("done") for how in ended.values()) else 1


def _no_gpu() -> str | None:
    """Why there is no GPU, or None."""
    import torch

    from hybrid_ray.training.hardware.placement import why_no_gpu

    return None if torch.cuda.is_available() else why_no_gpu()


def _about() -> str:
    return "; ".join(f"{name} (about {section.minutes:g} min)" for name, section in SECTIONS.items())


if __name__ == "__main__":
    sys.exit(main())
