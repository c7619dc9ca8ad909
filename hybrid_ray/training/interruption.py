"""Turns SIGTERM and Ctrl-C into a flag, which the loop reads between steps to checkpoint and stop."""

import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["StopRequest"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Inside the context, a signal sets ``asked`` instead of ending the process.

    A second Ctrl-C interrupts at once. Earlier handlers are not called until the context ends: Ray's would end the
    process before anything is saved. Python handles signals in the main thread only; in another thread (a Ray worker's)
    this does nothing and ``asked`` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
        self._before.clear()

    def listen(self) -> None:
        """Install the signal handlers. Called again after Ray has installed its own."""
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                self._before.setdefault(name, signal.signal(name, self._hear))

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
