"""What a run needs of a device's memory, found by following its allocations without making them."""

from hybrid_ray.memory.estimate import MemoryNeed, memory_need, size_text
from hybrid_ray.memory.measure import AllocationLog, Peak

__all__ = ["AllocationLog", "MemoryNeed", "Peak", "memory_need", "size_text"]
