"""SIGTERM and Ctrl-C as a flag: the loop reads it between steps, checkpoints and leaves."""

import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["StopRequest"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While the context lasts, a signal sets ``asked`` instead of ending the process.

    A second Ctrl-C interrupts at once. A handler that was there before waits: Ray's own would end the process before
    anything is saved. Python takes signals in the main thread alone; elsewhere (a Ray worker's thread) this does
    nothing and the flag stays down.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._hear) for name in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
