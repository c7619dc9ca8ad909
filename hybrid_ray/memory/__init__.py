"""Estimates the device memory a run needs by tracing its steps with fake tensors, which allocate nothing."""

from hybrid_ray.memory.allocation_log import AllocationLog, Peak
from hybrid_ray.memory.estimate import MemoryNeed, memory_need, size_text

__all__ = ["AllocationLog", "MemoryNeed", "Peak", "memory_need", "size_text"]
