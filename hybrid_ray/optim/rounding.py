"""Stochastic rounding to bf16: up or down at random, so that the expected value is the exact one.

bf16 has 8 bits of mantissa. With rounding to nearest, an update smaller than 1/512 of its weight has no effect, and at
a decayed learning rate most updates are that small. With stochastic rounding they take effect on average.
"""

import torch
from torch import Tensor

from hybrid_ray.optim.local import pieces

__all__ = ["Rounding", "is_narrow"]


def is_narrow(tensor: Tensor) -> bool:
    """Whether results written into the tensor need stochastic rounding (it is bf16)."""
    return tensor.dtype is torch.bfloat16


class Rounding:
    """Writes fp32 results into bf16 tensors with stochastic rounding.

    The random numbers for a tensor depend only on the seed and on how many tensors were rounded before it. So ranks
    that hold copies round alike, shards of different sizes stay in step, and the whole state is one number. torch's
    global random state, which differs between ranks, is not used.

    The error of a written value is at most one bf16 step, |w| / 128; its standard deviation is at most |w| / 256.

    Temporary memory per element of a piece (at most ``optim.local.PIECE`` elements): 9 bytes for ``add`` and 5 for
    ``write``; 4 more (6 in bf16) if the update is on another device, 2 more if the target is.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._seed = seed
        self._generator = torch.Generator(device)
        self.draws = 0  # tensors rounded so far

    def begin(self) -> None:
        """Start another tensor, which may be written in several pieces."""
        self.draws += 1
        self._generator.manual_seed(hash((self._seed, self.draws)) % 2**63)

    def write(self, target: Tensor, value: Tensor) -> None:
        """target = value, rounded. ``value`` is fp32 on the generator's device and is overwritten."""
        rounded = self._rounded(value)
        # Convert to bf16 before the transfer: PyTorch would transfer fp32 and convert on the CPU.
        target.copy_(rounded if target.device == rounded.device else rounded.to(target.dtype))

    def add(self, target: Tensor, update: Tensor, factor: float) -> None:
        """target = target + factor x update, summed in fp32, then rounded. ``update``: any float type, any device."""
        self.begin()
        for mine, theirs in pieces(target, update):
            moved = theirs.to(target.device, non_blocking=True).float()  # convert to fp32 after the transfer
            self.write(mine, mine.float().add_(moved, alpha=factor))

    def _rounded(self, value: Tensor) -> Tensor:
        """Add 16 random bits to the 16 fp32 bits that bf16 lacks, then set those to 0."""
        bits = value.view(torch.int32)
        strange = value.isnan()  # adding to the bits of NaN could turn it into a number
        chance = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=self._generator)
        bits.add_(chance).bitwise_and_(-(1 << 16))
        return value.masked_fill_(strange, torch.nan)
