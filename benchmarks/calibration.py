"""Measure how much the times of identical runs vary on a busy machine, in each unit of time.

    python benchmarks/calibration.py [--runs 8] [--steps 200] [--calibration-steps 100]

Every run is the same training of nano with slow momentum, so its true time is the same number of plain steps.
Meanwhile two other processes compute in bursts of random length. Prints the variation of the time in seconds and in
the run's own real steps, which is the unit that hybrid_ray uses, and of the cost of a real step beside a plain one,
which is measured before each run. About four minutes.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator

from hybrid_ray.config import DataConfig, HybridConfig, RunConfig, TrainConfig
from hybrid_ray.training.loop import train

NEIGHBOUR = """
import random, sys, time, torch
torch.set_num_threads(1)
draw, square = random.Random(int(sys.argv[1])), torch.randn(256, 256)
while True:
    until = time.monotonic() + draw.uniform(0.5, 6)
    while time.monotonic() < until:
        square @ square
    time.sleep(draw.uniform(0.5, 6))
"""


@contextlib.contextmanager
def neighbours(number: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(seed)]) for seed in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def variation(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.mean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--calibration-steps", type=int, default=100)
    options = parser.parse_args()
    run = RunConfig(
        arm="hybrid",
        data=DataConfig(heldout_tokens=4096),
        train=TrainConfig(steps=options.steps, device="cpu", calibration_steps=options.calibration_steps),
        hybrid=HybridConfig(predictor="slow_momentum"),
    )
    with neighbours(2):
        results = [train(run) for _ in range(options.runs)]
    units = {
        "seconds": [result.train_seconds for result in results],
        "the run's own real steps": [result.time for result in results],
        "cost of a real step": [result.real_step_cost for result in results],
    }
    print(f"{options.runs} identical runs of {options.steps} steps     mean   variation   smallest to largest")
    for unit, values in units.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{unit:32} {statistics.mean(values):10.2f}   {variation(values):8.2%}   {spread}")


if __name__ == "__main__":
    main()
