"""Loss of training with little memory: the same hybrid run with bf16 weights, with 8-bit moments, and in fp32.

    python benchmarks/low_memory.py loss [--steps 1000] [--seeds 1]     nano on real text; a few minutes on one core
    python benchmarks/low_memory.py state                               bytes of optimizer state per parameter

``state`` measures the memory at 124M, where ``loss`` would take too long. Neither needs a GPU.
"""

import argparse
import warnings

import psutil
import torch

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, OptimizerName, RunConfig, TrainConfig
from hybrid_ray.models import build_model, count_parameters
from hybrid_ray.optim import build_optimizer
from hybrid_ray.optim.offload import state_tensors
from hybrid_ray.run_result import Evaluation, Replay, Status, StepRecord
from hybrid_ray.training.loop import train

KINDS: dict[str, dict[str, object]] = {
    "fp32 weights, adamw": {},
    "bf16 weights, adamw on the host": {"weights": "bf16", "optimizer_device": "host"},
    "bf16 weights, adamw8bit": {"weights": "bf16", "optimizer": "adamw8bit"},
}


class MemoryReader:
    """Resident memory of this process in MiB, after 30 % of the steps and at the end."""

    def __init__(self, steps: int) -> None:
        self._at = {round(0.3 * steps), steps}
        self.seen: list[float] = []

    def step(self, record: StepRecord) -> None:
        if record.step in self._at:
            self.seen.append(psutil.Process().memory_info().rss / 2**20)

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        return None


def run_of(changes: dict[str, object], steps: int, seed: int) -> RunConfig:
    """A run with short cycles and buffers in host memory, in bf16 if the weights are."""
    training = TrainConfig(steps=steps, batch_size=8, evaluations=4, precision="bf16", **changes)  # type: ignore[arg-type]
    hybrid = HybridConfig(
        warmup_steps=steps // 5,
        full_steps=5,
        prediction_horizon=3,
        correct_steps=0,
        predictor={"name": "ema_nesterov", "gain": 0.6},  # type: ignore[arg-type]
        confidence_threshold=0.0,
        buffer_device="host",
        buffer_dtype="bfloat16" if "weights" in changes else "float32",
    )
    return RunConfig(arm="hybrid", seed=seed, data=DataConfig(max_bytes=2_000_000), train=training, hybrid=hybrid)


def losses(steps: int, seeds: int) -> None:
    print(f"{'':34} {'seed':>4} {'held-out loss':>13} {'cosine':>7} {'alpha':>6} {'MiB at 30 % and 100 %':>22}")
    for name, changes in KINDS.items():
        for seed in range(seeds):
            memory = MemoryReader(steps)
            result = train(run_of(changes, steps, seed), reporter=memory)
            cosine, alpha = result.statistics["mean_cosine"], result.statistics["mean_alpha"]
            sizes = " to ".join(f"{size:.1f}" for size in memory.seen)
            loss = result.heldout["test"].loss
            print(f"{name:34} {seed:4} {loss:13.4f} {cosine:7.3f} {alpha:6.2f} {sizes:>22}", flush=True)


def states() -> None:
    names: tuple[OptimizerName, ...] = ("adamw", "adamw8bit")
    for name in names:
        model = build_model(ModelConfig(preset="124M"), vocab_size=50257, sequence_length=64)
        optimizer = build_optimizer(model, TrainConfig(optimizer=name))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with torch.compiler.set_stance("force_eager"):
            optimizer.step()
        size = sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(optimizer))
        print(f"{name:10} {size / count_parameters(model):.2f} bytes of state per parameter, 124M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("loss", "state"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.what == "loss":
        losses(arguments.steps, arguments.seeds)
    else:
        states()


if __name__ == "__main__":
    main()
