"""The optimizer a run asks for, with weight decay where it belongs."""

from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hybrid_ray.config import TrainConfig

__all__ = ["build_optimizer"]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """One fused kernel a step where the device has one (CPU and CUDA do).

    Matrices and embedding tables decay; vectors (norms, biases) don't, as in GPT-2. ``adam`` adds the decay to the
    gradient, ``adamw`` takes it off the weights, ``sgd`` has momentum ``betas[0]``.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    plain = [parameter for parameter in parameters if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if members
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.learning_rate, momentum=config.betas[0], fused=fused)
    kind = AdamW if config.optimizer == "adamw" else Adam
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
