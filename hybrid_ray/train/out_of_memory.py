"""What running out of memory looks like, and giving back what was held."""

import gc

import torch

__all__ = ["free_memory", "is_out_of_memory"]


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Python have types for it; PyTorch's CPU allocator only a message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Give back what nothing refers to any more. Call it outside of the ``except`` whose traceback keeps it alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
