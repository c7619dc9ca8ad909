"""AdamW with 8-bit moments (arXiv 2110.02861): torchao's AdamW8bit, an optional dependency."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor

from hybrid_ray.errors import ConfigError
from hybrid_ray.optim.streamed import Streamed

__all__ = ["build_adamw8bit"]

_LOADING = ("torchao", "torch.utils._pytree")  # loggers that warn of kernels that are not used here


def build_adamw8bit(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> Streamed:
    """AdamW with 2.03 bytes of state per parameter: two 1-byte codes, and one fp32 scale per block of 256 codes.

    Tensors with fewer than 4096 elements, or whose size is not a multiple of 256, keep both moments in fp32 (8 bytes).
    ``torch.compile`` compiles the step once per shape of tensor, which takes seconds each on a CPU and needs a C++
    compiler there. Each tensor is updated as a whole.

    torchao would round bf16 weights stochastically with torch's global random state, which differs between ranks that
    hold copies. `Streamed` rounds them instead, at the cost of 8 bytes per element of the current tensor, and 5 more
    while it is rounded.

    Raises:
        ConfigError: torchao is not installed.
    """
    return _kind()(groups, lr=lr, betas=betas)  # type: ignore[no-any-return]


@cache
def _kind() -> Any:
    with _quiet():
        try:
            from torchao.optim import AdamW8bit
            from torchao.optim.subclass_8bit import OptimState8bit
        except ImportError as error:
            raise ConfigError(
                "train.optimizer is 'adamw8bit' but torchao cannot be imported "
                f"({error}): pip install 'hybrid-ray[low_memory]', or set train.optimizer to adamw"
            ) from error

    class StreamedAdamW8bit(Streamed, AdamW8bit):  # type: ignore[misc]
        """Saves codes and scales as plain tensors, so that checkpoints contain no class of torchao."""

        _cuts = False  # a tensor cannot be split, since its codes come in blocks

        def step(self, closure: Any = None) -> Any:
            with _quiet():  # the first step compiles
                return super().step(closure)

        def state_dict(self) -> dict[str, Any]:
            packed = super().state_dict()
            state = {
                number: {key: _plain(value) for key, value in of.items()} for number, of in packed["state"].items()
            }
            return {**packed, "state": state}

        def _loaded(self, key: str, value: Any, group: dict[str, Any], parameter: Tensor) -> Any:
            if not isinstance(value, Mapping):
                return super()._loaded(key, value, group, parameter)
            home = OptimState8bit.zeros(value["codes"].shape, key == "exp_avg", self.block_size, parameter.device)
            home.codes.copy_(value["codes"])
            home.scale.copy_(value["scale"])
            return home

    def _plain(value: Any) -> Any:
        return {"codes": value.codes, "scale": value.scale} if isinstance(value, OptimState8bit) else value

    return StreamedAdamW8bit


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of torchao and the compiler about deprecations, kernels for other GPUs and caching."""
    levels = {name: logging.getLogger(name).level for name in _LOADING}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|torchao)\..*")
            warnings.filterwarnings("ignore", message="OptimState8bit does not implement")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
