"""The optimizer a run asks for, with weight decay where it belongs."""

from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hybrid_ray.config import TrainConfig
from hybrid_ray.optim.prune import AdamWPrune
from hybrid_ray.optim.spam import AdamWSPAM

__all__ = ["build_optimizer"]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """One fused kernel a step where the device has one (CPU and CUDA do).

    Matrices and embedding tables decay; vectors (norms, biases) don't, as in GPT-2. ``adam`` adds the decay to the
    gradient, the kinds of ``adamw`` take it off the weights, ``sgd`` has momentum ``betas[0]``. ``adamwprune`` prunes
    the matrices of layers, not the embedding tables.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": config.weight_decay}]
    if config.optimizer == "adamwprune":
        layers = [parameter for parameter in matrices if id(parameter) not in tables]
        rest = [parameter for parameter in matrices if id(parameter) in tables]
        decay = config.weight_decay
        groups = [{"params": layers, "weight_decay": decay, "prune": True}, {"params": rest, "weight_decay": decay}]
    groups = [group for group in (*groups, {"params": vectors, "weight_decay": 0.0}) if group["params"]]
    return _optimizer(groups, config, fused=all(parameter.device.type in ("cpu", "cuda") for parameter in parameters))


def _optimizer(groups: list[dict[str, Any]], config: TrainConfig, *, fused: bool) -> Optimizer:
    rate, betas = config.learning_rate, config.betas
    if config.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=betas[0], fused=fused)
    if config.optimizer == "adam":
        return Adam(groups, lr=rate, betas=betas, fused=fused)
    if config.optimizer == "adamwspam":
        return AdamWSPAM(groups, lr=rate, betas=betas, fused=fused)
    if config.optimizer == "adamwprune":
        return AdamWPrune(
            groups,
            lr=rate,
            betas=betas,
            score=config.prune_score,
            target_sparsity=config.prune_sparsity,
            start=round(config.prune_start_fraction * config.steps),
            end=round(config.prune_end_fraction * config.steps),
            fused=fused,
        )
    return AdamW(groups, lr=rate, betas=betas, fused=fused)
