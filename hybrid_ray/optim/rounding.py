"""Stochastic rounding to bf16: up or down by chance, so that the mean stays the value.

bf16 has 8 bits of mantissa. Rounded to the nearest, a weight swallows every update smaller than 1/512 of it, and small
updates are what training at a decayed rate consists of. Rounded by chance, each of them has its chance to count.
"""

import torch
from torch import Tensor

from hybrid_ray.optim.local import pieces

__all__ = ["Rounding", "is_narrow"]


def is_narrow(tensor: Tensor) -> bool:
    """Whether results written into the tensor must be rounded by chance."""
    return tensor.dtype is torch.bfloat16


class Rounding:
    """Writes fp32 results into bf16 tensors.

    The chance of a tensor follows from the seed and the number of tensors before it alone. So ranks that hold copies
    draw the same (torch's global random state, which differs between ranks, is neither read nor moved), a rank's shard
    of another size puts nothing out of step, and one number is all the state there is.

    What is written is at most one step of bf16 from the value: |w| / 128, standard deviation at most |w| / 256.

    Temporaries: 9 bytes a number of a piece for ``add`` and 5 for ``write`` (in fp32 the sum; the chance; where it is
    not a number), 4 more where an update comes from elsewhere (6 in bf16), 2 more to write elsewhere. A piece is of at
    most ``optim.local.PIECE`` numbers.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._seed = seed
        self._generator = torch.Generator(device)
        self.draws = 0  # tensors rounded so far

    def begin(self) -> None:
        """Another tensor comes, in one piece or several."""
        self.draws += 1
        self._generator.manual_seed(hash((self._seed, self.draws)) % 2**63)

    def write(self, target: Tensor, value: Tensor) -> None:
        """target = value, an fp32 tensor on the generator's device, which is overwritten."""
        rounded = self._rounded(value)
        # Narrow before it crosses the bus: PyTorch would carry fp32 and convert on the CPU.
        target.copy_(rounded if target.device == rounded.device else rounded.to(target.dtype))

    def add(self, target: Tensor, update: Tensor, factor: float) -> None:
        """target = target + factor x update, summed in fp32. The update may be elsewhere, and of any type."""
        self.begin()
        for mine, theirs in pieces(target, update):
            moved = theirs.to(target.device, non_blocking=True).float()  # wide only once it is there
            self.write(mine, mine.float().add_(moved, alpha=factor))

    def _rounded(self, value: Tensor) -> Tensor:
        """fp32 with the 16 bits that bf16 lacks set to 0, after 16 random bits were added to them."""
        bits = value.view(torch.int32)
        strange = value.isnan()  # adding to the bits of NaN could give a number
        chance = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=self._generator)
        bits.add_(chance).bitwise_and_(-(1 << 16))
        return value.masked_fill_(strange, torch.nan)
