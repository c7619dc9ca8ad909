"""Where a run trains, and a check that it does: a job that asks for a GPU and trains on the CPU is an error."""

import os

import torch
from torch import nn

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError

__all__ = ["check_placement", "choose_device", "why_no_gpu"]


def choose_device(run: RunConfig) -> torch.device:
    """Where the run trains: the current GPU, or the CPU.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if run.train.device == "cuda" and not available:
        raise ConfigError(
            f"train.device is 'cuda' but PyTorch sees no GPU: {why_no_gpu()}; "
            "or set train.device to cpu and resources.gpus_per_worker to 0"
        )
    if run.train.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def why_no_gpu() -> str:
    """Why PyTorch sees no GPU in this process, and the mend."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA: install one with it"
    if visible is not None and visible.strip() in ("", "-1"):
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all: unset it, or give the run a GPU "
            "(resources.gpus_per_worker)"
        )
    return "no driver answers, or it is too old for this torch: look at nvidia-smi on this machine"


def check_placement(module: nn.Module, device: torch.device) -> None:
    """Whether every weight is where the run said that it trains.

    Raises:
        ConfigError: some are elsewhere. The run would go on, at another machine's speed, and be believed.
    """
    strays = [name for name, weight in module.named_parameters() if weight.device.type != device.type]
    if strays:
        where = dict(module.named_parameters())[strays[0]].device.type
        raise ConfigError(
            f"the run trains on {device.type} but {len(strays)} of its weights are on {where} ({strays[0]}, ...): "
            "nothing may move the model once it is built; take out what does"
        )
