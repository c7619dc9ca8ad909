"""Records every allocation that PyTorch makes inside a block, for real tensors and for fake ones without memory."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["AllocationLog", "Peak"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The largest number of bytes allocated at once during a moment, split into parts such as weights."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def of(self, part: str) -> int:
        """Bytes of a part; 0 where there was none."""
        return self.parts.get(part, 0)


class AllocationLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, records when each tensor's storage is allocated and freed.

    Which part a storage belongs to may be known only later (`claim`): a tensor turns out to be a gradient once the
    backward pass has made it. So the log keeps all events, and `peaks` replays them. It does not see memory that a
    kernel allocates and frees within one operation, nor storages that no operation returned.

    Args:
        label: names a tensor's part when it is allocated, or returns None if it is not known then.
    """

    def __init__(self, label: Callable[[Tensor], str | None] = lambda tensor: None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._label = label
        self._alive: dict[int, int] = {}  # storage handle -> its number
        self._sizes: list[int] = []
        self._parts: list[str] = []
        self._claimed: dict[int, str] = {}
        self._events: list[tuple[str, int, bool]] = []  # moment, storage number, True: allocated, False: freed
        self._moment = "start"
        self._place = ""
        self._default = "other"

    @contextmanager
    def moment(self, name: str, part: str) -> Iterator[None]:
        """Name the events inside the block, and assign its allocations to ``part`` until they are claimed."""
        before = self._moment, self._place, self._default
        self._moment, self._place, self._default = name, "", part
        try:
            yield
        finally:
            self._moment, self._place, self._default = before

    def at(self, place: str) -> None:
        """Record the rest of the moment as ``moment/place``."""
        self._place = f"/{place}"

    def claim(self, tensors: Iterable[Tensor], part: str) -> None:
        """Assign tensors to a part, for their whole lifetime."""
        for tensor in tensors:
            number = self._alive.get(tensor.untyped_storage()._cdata)
            if number is not None:
                self._claimed[number] = part

    def pinned(self, parts: Collection[str]) -> int:
        """Bytes of pinned memory that the claimed ``parts`` take: PyTorch rounds each storage up to a power of two."""
        sizes = [self._sizes[number] for number, part in self._claimed.items() if part in parts]
        return sum(1 << (size - 1).bit_length() for size in sizes if size)

    def peaks(self, *, without: Collection[str] = ()) -> dict[str, Peak]:
        """The peak of each moment, by name. Parts in ``without`` (those in other memory) do not count."""
        now: defaultdict[str, int] = defaultdict(int)
        found: dict[str, Peak] = {}
        most: dict[str, int] = {}
        total = 0
        for moment, number, came in self._events:
            part = self._claimed.get(number, self._parts[number])
            if part in without:
                continue
            change = self._sizes[number] if came else -self._sizes[number]
            now[part] += change
            total += change
            if total > most.get(moment, -1):
                most[moment] = total
                found[moment] = Peak(parts=dict(now))
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        handle = storage._cdata
        if handle in self._alive:
            return
        number = len(self._sizes)
        self._alive[handle] = number
        self._sizes.append(storage.nbytes())
        self._parts.append(self._label(tensor) or self._default)
        self._events.append((self._moment + self._place, number, True))
        weakref.finalize(storage, self._gone, handle, number).atexit = False

    def _gone(self, handle: int, number: int) -> None:
        self._events.append((self._moment + self._place, number, False))
        if self._alive.get(handle) == number:
            del self._alive[handle]
