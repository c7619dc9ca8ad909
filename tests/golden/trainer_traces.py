"""Traces of `HybridTrainer` on a small regression: every predictor and everything else that affects a step.

A trace has the phase, loss, confidence and events of each nominal step, and a hash of the weights at the end. Floats
are written as ``float.hex()``, so that two traces are equal only to the last bit.
"""

import hashlib
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hybrid_ray import HybridConfig, HybridTrainer
from hybrid_ray.config.predictors import OPTIONS

__all__ = ["rank_traces", "trainer_traces"]

TRAINER_ARGUMENTS = ("total_steps", "accumulate", "clip_norm", "seed")  # all others are settings of the method
STEPS, BATCH, INPUTS = 72, 16, 8
BASE: Mapping[str, Any] = {
    "confidence_threshold": 0.0,
    "warmup_steps": 5,
    "full_steps": 4,
    "prediction_horizon": 5,
    "correct_steps": 3,
    "correction_interval": 0,
    "time_constant": 20.0,
    "sample_one_in": 2,
    "gain": 0.6,
    "first_fraction": 0.0,
    "off_fraction": 0.0,
}
OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=2e-2, momentum=0.9),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One training run. ``spoiled``: factors on the loss, by nominal step (from 1)."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    spoiled: Mapping[int, float] = field(default_factory=dict)
    replay_of: str | None = None
    restore_at: int | None = None  # after that many steps: save, rebuild everything, load, continue
    parallel: str = "none"  # ddp and fsdp need a process group


def _predictor(name: str, **settings: Any) -> dict[str, Any]:
    return {"predictor": name, **settings}


_MICRO = {"prediction_horizon": 6, "correction_interval": 2}
_TROUBLE = {15: math.nan, 34: 1e4, 41: math.inf, 58: 30.0}
SCENARIOS: Mapping[str, Scenario] = {
    **{
        f"{name}, {optimizer}": Scenario(settings=_predictor(name), optimizer=optimizer)
        for name in ("none", "ema_nesterov", "snoo", "linear_fit", "momentum", "zero")
        for optimizer in OPTIMIZERS
    },
    **{name: Scenario(settings=_predictor(name), replay_of="ema_nesterov, adamw") for name in ("random", "reversed")},
    "micro-corrections": Scenario(settings=_MICRO),
    "zero, replayed": Scenario(settings=_predictor("zero"), replay_of="micro-corrections"),
    "resumed in mid-Predict": Scenario(settings=_MICRO, restore_at=12),
    "micro-corrections, momentum": Scenario(settings=_predictor("momentum", **_MICRO)),
    "no Correct phase": Scenario(settings={"correct_steps": 0, "full_steps": 2}),
    "gated by confidence": Scenario(settings={"confidence_threshold": 0.45}),
    "gated by confidence, sgd": Scenario(settings={"confidence_threshold": 0.6}, optimizer="sgd"),
    "corrector": Scenario(settings={"residual_feedback": 0.5}),
    "scaled horizon": Scenario(settings={"horizon_mode": "scaled", "residual_feedback": 0.2}),
    "last part real": Scenario(settings={"total_steps": STEPS, "off_fraction": 0.3, "couple_lr": False}),
    "accumulated and clipped": Scenario(settings={"accumulate": 3, "clip_norm": 0.2}),
    "bfloat16 buffers": Scenario(settings={"buffer_dtype": "bfloat16"}),
    "host buffers, offloaded": Scenario(settings={"buffer_device": "host", "offload_optimizer": True, **_MICRO}),
    "rollback, skip and reset": Scenario(spoiled=_TROUBLE),
    "rollback in a micro-correction": Scenario(settings=_MICRO, spoiled={12: math.nan, 45: 1e3}),
    "trouble without prediction": Scenario(settings=_predictor("none"), spoiled=_TROUBLE),
    "trouble after a long jump": Scenario(settings={"gain": 8.0}, optimizer="sgd"),
    "diverged": Scenario(spoiled=dict.fromkeys(range(30, STEPS), math.nan)),
}
RANK_SCENARIOS: Mapping[str, Scenario] = {
    **{
        f"two ranks, {parallel}": Scenario(settings={**_MICRO, "clip_norm": 1.0}, parallel=parallel, restore_at=12)
        for parallel in ("ddp", "fsdp")
    },
    "two ranks, trouble": Scenario(parallel="ddp", spoiled=_TROUBLE),
}


def trainer_traces() -> dict[str, Any]:
    """The traces of all scenarios with one process, by name."""
    torch.set_num_threads(1)
    records: dict[str, Any] = {}
    return {name: _trace(scenario, records, name) for name, scenario in SCENARIOS.items()}


def rank_traces() -> dict[str, Any]:
    """The traces of two ranks with gloo. Both ranks must give the same trace."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from rank_pool import RankPool

    pool = RankPool()
    try:
        found = {name: pool.run(_trace_of_rank, name) for name in RANK_SCENARIOS}
    finally:
        pool.close()
    apart = [name for name, (first, second) in found.items() if first != second]
    return {name: first for name, (first, _) in found.items()} | {"ranks that differ": apart}


def _trace_of_rank(name: str) -> dict[str, Any]:
    return _trace(RANK_SCENARIOS[name], {}, name)


class _Training:
    """Model, trainer and data position."""

    def __init__(self, scenario: Scenario, replay: Any) -> None:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 1))
        self.model = _parallel(module, scenario.parallel)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = OPTIMIZERS[scenario.optimizer](groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0 - 0.8 * step / STEPS)
        settings = {**BASE, **scenario.settings}
        arguments = {name: settings.pop(name) for name in TRAINER_ARGUMENTS if name in settings}
        self.trainer = HybridTrainer(
            self.model, self.optimizer, _hybrid_config(settings), lr_scheduler=schedule, replay=replay, **arguments
        )
        self.factors, self.steps, self.batches = scenario.spoiled, 0, 0
        generator = torch.Generator().manual_seed(1)
        self.x_NI = torch.randn(512, INPUTS, generator=generator)
        self.y_N1 = self.x_NI[:, :1].sin() + 0.1 * torch.randn(512, 1, generator=generator)

    def step(self) -> Any:
        self.steps += 1
        return self.trainer.step(self._loss)

    def _loss(self) -> Tensor:
        rows = torch.arange(self.batches * BATCH, (self.batches + 1) * BATCH) % 512
        self.batches += 1
        if dist.is_initialized():
            rows = rows.chunk(dist.get_world_size())[dist.get_rank()]
        loss = ((self.model(self.x_NI[rows]) - self.y_N1[rows]) ** 2).mean()
        return loss * self.factors.get(self.steps, 1.0)

    def weights(self) -> list[Tensor]:
        return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in self.model.parameters()]

    def restored(self, scenario: Scenario, replay: Any) -> "_Training":
        """The same after a restart from the saved weights, the trainer's state and the data position."""
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.trainer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=False)
        other = _Training(scenario, replay)
        other.model.load_state_dict(weights)
        other.trainer.load_state_dict(state)
        other.steps, other.batches = self.steps, self.batches
        return other


def _hybrid_config(settings: Mapping[str, Any]) -> HybridConfig:
    """The configuration for settings in which the predictor's options stand beside those of the method."""
    name = settings.get("predictor", "ema_nesterov")
    moving = "ema_nesterov" if name == "reversed" else name
    own = {option.name for option in fields(OPTIONS[moving])}
    every = {option.name for kind in OPTIONS.values() for option in fields(kind)}
    predictor: dict[str, Any] = {"name": moving, **{key: settings[key] for key in own & settings.keys()}}
    if name == "reversed":
        predictor = {"name": name, "of": predictor}
    return HybridConfig(**{**{key: settings[key] for key in settings.keys() - every}, "predictor": predictor})


def _parallel(module: nn.Module, how: str) -> nn.Module:
    if how == "fsdp":
        return fully_shard(module)
    return DistributedDataParallel(module) if how == "ddp" else module


def _trace(scenario: Scenario, records: dict[str, Any], name: str) -> dict[str, Any]:
    replay = None if scenario.replay_of is None else records[scenario.replay_of]
    training, results, error = _Training(scenario, replay), [], None
    for step in range(STEPS):
        if step == scenario.restore_at:
            training = training.restored(scenario, replay)
        try:
            results.append(_fields(training.step()))
        except ArithmeticError as raised:
            error = f"{type(raised).__name__}: {raised}"
            break
    record = records[name] = training.trainer.replay_record()
    numbers = training.trainer.statistics()
    return {
        "letters": record.phases,
        "phases": "".join(str(row["phase"])[0] for row in results),
        "predicted": sum(row["predicted"] for row in results),
        "losses": [_exact(row["loss"]) for row in results if row["loss"] is not None],
        "grad_norms": _hash(_exact(row["grad_norm"]) for row in results),
        "confidence": dict(_changes([_exact(row["confidence"]) for row in results])),
        "levels": dict(_changes([str(row["level"]) for row in results])),
        "events": {str(step): row["event"] for step, row in enumerate(results, start=1) if row["event"]},
        "learning_rate": _exact(training.optimizer.param_groups[0]["lr"]),
        "jumps": [_exact(list(norms)) for norms in record.norms],
        "statistics": {key: _exact(value) for key, value in numbers.items() if not _varies(key)},
        "batches": training.batches,
        "weights": weights_hash(training.weights()),
        "error": error,
    }


def _fields(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in type(result).__slots__}


def _varies(key: str) -> bool:
    return "seconds" in key or "memory" in key or key == "offload"


def _changes(values: list[str]) -> Iterator[tuple[str, str]]:
    """The steps at which a value differs from that of the previous step."""
    for step, value in enumerate(values, start=1):
        if step == 1 or value != values[step - 2]:
            yield str(step), value


def _exact(value: Any) -> Any:
    """Floats as hexadecimal text, also in nested data."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _exact(inner) for key, inner in value.items()}
    return [_exact(inner) for inner in value] if isinstance(value, list | tuple) else value


def _hash(values: Iterator[Any]) -> str:
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()[:16]


def weights_hash(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
