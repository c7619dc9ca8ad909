"""Chooses the device of a run and checks that the model is on it: a GPU job never trains on the CPU silently."""

import os

import torch
from torch import nn

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError

__all__ = ["check_placement", "choose_device", "why_no_gpu"]


def choose_device(run: RunConfig) -> torch.device:
    """The device of the run: the current GPU, or the CPU.

    Raises:
        ConfigError: ``train.device`` is cuda and PyTorch sees no GPU.
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
    """Why PyTorch sees no GPU in this process, and how to fix it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA: install a build with CUDA"
    if visible is not None and visible.strip() in ("", "-1"):
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all GPUs: unset it, or give the run a GPU "
            "(resources.gpus_per_worker)"
        )
    return "there is no working NVIDIA driver, or it is too old for this torch: check with nvidia-smi"


def check_placement(module: nn.Module, device: torch.device) -> None:
    """Check that every weight is on the run's device.

    Raises:
        ConfigError: some weights are elsewhere, so the measured times would be those of another device.
    """
    strays = [name for name, weight in module.named_parameters() if weight.device.type != device.type]
    if strays:
        where = dict(module.named_parameters())[strays[0]].device.type
        raise ConfigError(
            f"the run trains on {device.type} but {len(strays)} of its weights are on {where} ({strays[0]}, ...): "
            "the model must stay on its device once it is built; remove the code that moves it"
        )
