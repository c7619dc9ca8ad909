"""Recognises out-of-memory errors, and frees memory after one."""

import gc

import torch

__all__ = ["free_memory", "is_out_of_memory"]

_MESSAGES = "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory. CPU allocator, pinned memory and cuBLAS only show it in their messages."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(message in told for message in _MESSAGES)


def free_memory() -> None:
    """Free unreferenced memory. Call it after the ``except`` block, whose traceback keeps references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
