"""What a run needs of a device's memory, found by following its allocations without making them."""

from hybrid_ray.memory.allocation_log import AllocationLog, Peak
from hybrid_ray.memory.estimate import MemoryNeed, memory_need, size_text

__all__ = ["AllocationLog", "MemoryNeed", "Peak", "memory_need", "size_text"]
