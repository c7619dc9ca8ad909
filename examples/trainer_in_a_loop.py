"""The hybrid trainer in a plain PyTorch loop, without Ray and without a job: `python examples/trainer_in_a_loop.py`.

A small network learns a noisy function of eight numbers. A second run stops half-way and resumes from a checkpoint, as
after a crash; a third one trains the same nominal steps without prediction. The script prints the time, the loss and
the number of predictions of each.
"""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid_ray import HybridConfig, HybridTrainer

STEPS, BATCH = 800, 64


def make_data(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BI = torch.randn(rows, 8, generator=generator)
    y_B1 = (x_BI[:, :1] * x_BI[:, 1:2]).sin() + x_BI[:, 2:3] + 0.1 * torch.randn(rows, 1, generator=generator)
    return x_BI, y_B1


def build(config: HybridConfig) -> HybridTrainer:
    """Model, optimizer, schedule and trainer of a new run. The schedule is a warmup, then a cosine to a tenth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))
    )
    return HybridTrainer(model, optimizer, config, lr_scheduler=schedule, total_steps=STEPS, clip_norm=1.0)


class Batches:
    """Computes the loss of the next batch. Predicted steps take no batch, so it counts the batches itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.taken = model, 0
        self.x_NI, self.y_N1 = make_data(8192, seed=1)

    def loss(self) -> Tensor:
        rows = torch.arange(self.taken * BATCH, (self.taken + 1) * BATCH) % len(self.x_NI)
        self.taken += 1
        return F.mse_loss(self.model(self.x_NI[rows]), self.y_N1[rows])


def train(config: HybridConfig, *, stop: Callable[[int], bool] = lambda step: False) -> tuple[HybridTrainer, float]:
    """The training loop. Returns the trainer and the seconds it took.

    After each step for which ``stop`` returns True, everything is created again and restored from a file.
    """
    trainer = build(config)
    batches = Batches(trainer.model)
    started = time.perf_counter()
    for step in range(1, STEPS + 1):
        trainer.step(batches.loss)
        if stop(step):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "checkpoint.pt"
                torch.save(
                    {"model": trainer.model.state_dict(), "trainer": trainer.state_dict(), "taken": batches.taken}, file
                )
                saved = torch.load(file, weights_only=True)
            trainer = build(config)
            trainer.model.load_state_dict(saved["model"])
            trainer.load_state_dict(saved["trainer"])  # optimizer, schedule and predictor too
            batches = Batches(trainer.model)
            batches.taken = saved["taken"]
    return trainer, time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    method = HybridConfig(confidence_threshold=0.2, warmup_steps=100, full_steps=10, correct_steps=5)
    held_out = make_data(4096, seed=2)
    runs = {
        "hybrid": train(method),
        "resumed": train(method, stop=lambda step: step == STEPS // 2),
        "plain": train(HybridConfig(predictor="none")),
    }
    for name, (trainer, seconds) in runs.items():
        with torch.no_grad():
            loss = F.mse_loss(trainer.model(held_out[0]), held_out[1]).item()
        numbers = trainer.statistics()
        shares = ", ".join(f"{phase} {share:.0%}" for phase, share in numbers["phase_shares"].items() if share)
        print(
            f"{name:8s} {seconds:4.1f} s, held-out loss {loss:.5f}: {numbers['real_steps']} gradients for {STEPS} "
            f"steps, {numbers['jumps']} predictions ({shares})"
        )
    both = zip(runs["hybrid"][0].model.parameters(), runs["resumed"][0].model.parameters(), strict=True)
    same = all(torch.equal(first, second) for first, second in both)
    print(f"the resumed run ended with the same bits: {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()
