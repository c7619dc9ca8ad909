"""A small regression every hybrid test can train: fast, noisy like a real run, the same for the same seed."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.config.predictors import OPTIONS
from hybrid_ray.method import HybridTrainer


def toy_model(seed: int = 0, width: int = 16) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))


class Batches:
    """Batches in a fixed order; position can be saved. ``batches(model)`` is the closure's work."""

    def __init__(self, model: torch.nn.Module, seed: int = 0, size: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(512, 8, generator=generator)
        self.y = self.x[:, :1].sin() + 0.1 * torch.randn(512, 1, generator=generator)
        self.model, self.size, self.taken = model, size, 0

    def __call__(self) -> torch.Tensor:
        rows = torch.arange(self.taken * self.size, (self.taken + 1) * self.size) % 512
        self.taken += 1
        return ((self.model(self.x[rows]) - self.y[rows]) ** 2).mean()


def quick(**changes: Any) -> HybridConfig:
    """The seeds' quick run: always confident, warmup 5, full 10, horizon 5, correct 5, predictions to the end."""
    settings: dict[str, Any] = {
        "confidence_threshold": 0.0,
        "warmup_steps": 5,
        "full_steps": 10,
        "prediction_horizon": 5,
        "correct_steps": 5,
        "correction_interval": 0,
        "first_fraction": 0.0,
        "off_fraction": 0.0,
    }
    if changes.get("predictor", "ema_nesterov") in ("ema_nesterov", "reversed"):
        settings |= {"gain": 1.0, "time_constant": 100.0}
    return HybridConfig(**with_options(settings | changes))


def with_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the options of the predictor, which a test writes next to them, where they belong."""
    known = {option.name for kind in OPTIONS.values() for option in fields(kind)}
    options = {name: value for name, value in settings.items() if name in known}
    rest = {name: value for name, value in settings.items() if name not in known}
    name = settings.get("predictor", "ema_nesterov")
    if name == "reversed":
        return rest | {"predictor": {"name": name, "of": {"name": "ema_nesterov", **options}}}
    return rest | {"predictor": {"name": name, **options}}


def toy_run(
    config: HybridConfig,
    *,
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=1e-2),
    seed: int = 0,
    **options: Any,
) -> tuple[HybridTrainer, Batches]:
    """A trainer and its closure."""
    model = toy_model(seed)
    return HybridTrainer(model, optimizer(model.parameters()), config, **options), Batches(model, seed)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
