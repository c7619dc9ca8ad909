"""Compare the memory estimate with a full trace, or with PyTorch's own tracker, case by case.

    python benchmarks/memory_estimate.py [nano|124M|350M|774M|1.5B ...] [--tracker]

``traced`` follows every block of the model through the trainer's own steps on fake tensors; the estimate follows only
three or four blocks. ``--tracker`` uses PyTorch's MemTracker around the run's own set-up instead, which is much slower.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

from fake_runs import Tokens, run_of, text_task, tracked_peak

from hybrid_ray.config import RunConfig
from hybrid_ray.memory.estimate import memory_need
from hybrid_ray.memory.trace import Batches, trace

CHECKPOINTED = {"activation_checkpointing": True}
LOW = {"precision": "bf16", "weights": "bf16"}
CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 autocast": {"precision": "bf16"},
    "autocast, checkpointing, 8 chunks": {"precision": "bf16", "model": CHECKPOINTED | {"loss_chunks": 8}},
    "bf16 weights, checkpointing, host state": {
        **LOW,
        "model": CHECKPOINTED | {"loss_chunks": 8},
        "accumulate": 4,
        "optimizer_device": "host",
        "hybrid": {"buffer_device": "host"},
    },
}


def traced_peak(run: RunConfig, data: Tokens) -> int:
    elsewhere = {"host"} | ({"optimizer"} if run.train.optimizer_device == "host" else set())
    return max(
        peak.total for peak in trace(run, Batches.of(run, text_task(run, data))).peaks(without=elsewhere).values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["nano", "124M"])
    parser.add_argument("--tracker", action="store_true", help="measure with MemTracker")
    options = parser.parse_args()
    print(
        f"| model | micro-batch | settings | estimate MiB | {'tracked' if options.tracker else 'traced'} MiB | ratio |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for preset in options.presets:
        data = Tokens(257 if preset == "nano" else 50_257)
        micro, length = (16, 64) if preset == "nano" else (2, 1024)
        for name, settings in CASES.items():
            run = run_of(preset, micro, length=length, **settings)
            estimate = memory_need(run, text_task(run, data)).allocated
            found = tracked_peak(run, data) if options.tracker else traced_peak(run, data)
            sizes = f"{estimate / 2**20:,.1f} | {found / 2**20:,.1f} | {estimate / found:.3f}"
            print(f"| {preset} | {micro} x {length} | {name} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
