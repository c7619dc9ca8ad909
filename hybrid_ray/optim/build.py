"""Builds a run's optimizer and its parameter groups, with and without weight decay."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from hybrid_ray.config import TrainConfig
from hybrid_ray.optim.ademamix import AdEMAMix
from hybrid_ray.optim.eight_bit import build_adamw8bit
from hybrid_ray.optim.muon import MuonAdamW, MuonAdEMAMix
from hybrid_ray.optim.own import own_optimizer
from hybrid_ray.optim.prune import AdamWPrune
from hybrid_ray.optim.schedule_free import build_schedule_free
from hybrid_ray.optim.spam import AdamWSPAM
from hybrid_ray.optim.streamed import Streamed, StreamedAdam, StreamedAdamW, StreamedSGD

__all__ = ["build_optimizer"]

_ALPHA = {"ademamix": 8.0, "muon_ademamix": 2.0}  # tuned on pico with 2,000 steps (docs/findings.md)


def build_optimizer(model: nn.Module, config: TrainConfig, *, seed: int = 0) -> Optimizer:
    """The optimizer that ``config`` names, with fused kernels on CPU and CUDA.

    Weight decay applies to matrices and embedding tables but not to vectors (norms, biases), as in GPT-2. ``adam`` adds
    it to the gradient, the variants of ``adamw`` subtract it from the weights. ``sgd`` uses ``betas[0]`` as momentum.
    ``adamwprune`` prunes the matrices of layers but not the embedding tables; ``muon`` uses Muon for those matrices and
    AdamW for the rest, ``muon_ademamix`` the same with AdEMAMix's slow average. A user's optimizer gets the first two
    groups.

    With bf16 weights, or with state in host memory, the step is taken in windows (`Streamed`); for fp32 weights the
    result is bit-identical.

    Args:
        seed: for the stochastic rounding of bf16 weights; must be the same on all ranks.

    Raises:
        ConfigError: ``adamw8bit`` without torchao.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": config.weight_decay}]
    if config.optimizer in ("adamwprune", "muon", "muon_ademamix"):
        layers = [parameter for parameter in matrices if id(parameter) not in tables]
        rest = [parameter for parameter in matrices if id(parameter) in tables]
        decay = config.weight_decay
        mark = "prune" if config.optimizer == "adamwprune" else "muon"
        groups = [{"params": layers, "weight_decay": decay, mark: True}, {"params": rest, "weight_decay": decay}]
    groups = [group for group in (*groups, {"params": vectors, "weight_decay": 0.0}) if group["params"]]
    if config.own_optimizer:
        return own_optimizer(groups, config)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if config.optimizer == "muon":
        return MuonAdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
    if config.optimizer == "muon_ademamix":
        slow = _slow_average(config)
        return MuonAdEMAMix(groups, lr=config.learning_rate, betas=config.betas, fused=fused, **slow)
    if config.optimizer == "schedule_free":
        return build_schedule_free(groups, lr=config.learning_rate, betas=config.betas)
    optimizer = _optimizer(groups, config, fused=fused)
    if config.weights == "bf16" or config.optimizer_device == "host" or config.optimizer == "adamw8bit":
        optimizer.stream(state_device=config.optimizer_device, seed=seed)
    return optimizer


def _slow_average(config: TrainConfig) -> dict[str, Any]:
    alpha = config.alpha if config.alpha is not None else _ALPHA[str(config.optimizer)]
    return {"alpha": alpha, "beta3": config.beta3, "total_steps": config.steps}


def _optimizer(groups: list[dict[str, Any]], config: TrainConfig, *, fused: bool) -> Streamed:
    rate, betas = config.learning_rate, config.betas
    shared: dict[str, Any] = {"lr": rate, "betas": betas, "fused": fused}
    if config.optimizer == "sgd":
        return StreamedSGD(groups, lr=rate, momentum=betas[0], fused=fused)
    if config.optimizer == "adam":
        return StreamedAdam(groups, **shared)
    if config.optimizer == "adamw8bit":
        return build_adamw8bit(groups, lr=rate, betas=betas)
    if config.optimizer == "ademamix":
        return AdEMAMix(groups, **_slow_average(config), **shared)
    if config.optimizer == "adamwspam":
        return AdamWSPAM(groups, **shared)
    if config.optimizer == "adamwprune":
        return AdamWPrune(
            groups,
            score=config.prune_score,
            target_sparsity=config.prune_sparsity,
            start=round(config.prune_start_fraction * config.steps),
            end=round(config.prune_end_fraction * config.steps),
            **shared,
        )
    return StreamedAdamW(groups, **shared)
