"""A noisy quadratic loss, on which it is known whether jumps are safe."""

from typing import Any

import torch
from hybrid_toy import with_options

from hybrid_ray.config import HybridConfig
from hybrid_ray.method import HybridTrainer

CURVATURES = torch.logspace(-2.5, 0.0, 30)
NOISE = 0.15


class NoisyQuadratic(torch.nn.Module):
    """1 + half of the sum of curvature x (weight + noise)^2. Draws follow from ``seed`` and the number of the batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(len(CURVATURES), generator=generator) * 2.0)
        self.seed, self.taken = seed, 0

    def batch(self) -> torch.Tensor:
        """The closure's work."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.taken)
        self.taken += 1
        return self.loss(NOISE * torch.randn(len(CURVATURES), generator=generator))

    def loss(self, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
        return 1.0 + 0.5 * (CURVATURES * (self.weight + noise).square()).sum()


def quadratic_run(
    steps: int, *, seed: int = 0, rate: float = 0.2, **changes: Any
) -> tuple[HybridTrainer, NoisyQuadratic]:
    """A trainer of ``steps`` nominal steps at a constant rate: jumps of 5 steps after every 5 real ones."""
    settings: dict[str, Any] = {
        "warmup_steps": 20, "full_steps": 5, "prediction_horizon": 5, "correct_steps": 0, "first_fraction": 0.0,
        "off_fraction": 0.0, "sample_one_in": 1,
    }  # fmt: skip
    if changes.get("predictor", "ema_nesterov") == "ema_nesterov":
        settings |= {"gain": 1.0, "time_constant": 20.0}
    model = NoisyQuadratic(seed)
    config = HybridConfig(**with_options(settings | changes))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return HybridTrainer(model, optimizer, config, total_steps=steps, seed=seed), model
