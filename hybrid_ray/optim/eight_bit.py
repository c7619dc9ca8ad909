"""AdamW whose moments take a byte each: torchao's AdamW8bit, an optional extra (8-bit optimizers, arXiv 2110.02861)."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hybrid_ray.errors import ConfigError
from hybrid_ray.optim.streamed import Streamed

__all__ = ["build_adamw8bit"]

_LOADING = ("torchao", "torch.utils._pytree")  # loggers with something to say of kernels that are not used here


def build_adamw8bit(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> Streamed:
    """AdamW with 2.03 bytes of state a parameter: two codes of a byte, and an fp32 scale for each block of 256 codes.

    Parameters below 4096 numbers, or whose size is no multiple of 256, keep both moments in fp32 (8 bytes). The step
    is compiled by ``torch.compile`` once for each shape of parameter (seconds each on a CPU, which needs a C++
    compiler), one whole parameter at a time.

    torchao rounds bf16 weights stochastically from torch's global random state, which differs between ranks that hold
    copies. So the rounding is ours (`Streamed`), and costs 8 bytes a number of the parameter under way, 5 more while it
    is rounded.

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
                f"({error}): pip install 'hybrid-ray[low_memory]', or use adamw"
            ) from error

    class StreamedAdamW8bit(Streamed, AdamW8bit):  # type: ignore[misc]
        """Saves codes and scales as plain tensors: a checkpoint holds no class of another package."""

        _cuts = False  # codes come in blocks

        def step(self, closure: Any = None) -> Any:
            with _quiet():  # compiling, the first time
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

    assert issubclass(StreamedAdamW8bit, Optimizer)
    return StreamedAdamW8bit


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torchao and the compiler say of themselves: deprecations, kernels for other GPUs, caching."""
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
