"""What running out of memory looks like, and giving back what was held."""

import gc

import torch

__all__ = ["free_memory", "is_out_of_memory"]

_MESSAGES = "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Python have types for it; the CPU's allocator, pinned host memory and cuBLAS only messages."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(message in told for message in _MESSAGES)


def free_memory() -> None:
    """Give back what nothing refers to any more. Call it outside of the ``except`` whose traceback keeps it alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
