"""Worker processes in one gloo group, kept over tests: a call takes milliseconds.

They are forked from one process that has imported what they need, which takes seconds, and has no threads.
"""

import datetime
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

STARTUP_SECONDS = 60.0
IMPORTED = ["torch._dynamo", "torch.distributed.fsdp", "hybrid_ray.training.loop"]  # by the process that is forked


def forking() -> ForkServerContext:
    """How to start processes that have imported torch and the training loop."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class RankError(AssertionError):
    """A rank raised, died or did not answer in time."""


class RankPool:
    """Calls a function on every rank at once.

    A rank that raises, dies or hangs ends the whole group: collectives would be out of step. The next call starts a
    new one.

    Args:
        world: number of ranks.
    """

    def __init__(self, world: int = 2) -> None:
        self.world = world
        self._ranks: list[tuple[Any, Connection]] = []
        self._directory = ""  # where the group's store is, while it lives

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
        """``function(*args)`` of every rank, by rank. The function must be importable by name.

        Raises:
            RankError: with each failed rank's traceback.
        """
        if not self._ranks:
            self._start()
        for _, pipe in self._ranks:
            pipe.send((function, args))
        answers = [self._answer(rank, timeout) for rank in range(self.world)]
        failures = [f"rank {rank}: {answer}" for rank, (good, answer) in enumerate(answers) if not good]
        if failures:
            self.close()
            raise RankError("\n".join(failures))
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process, pipe in self._ranks:
            process.kill()
            process.join()
            pipe.close()
        self._ranks = []
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        self._directory = tempfile.mkdtemp()
        store = Path(self._directory) / "store"
        context = forking()
        for rank in range(self.world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, str(store), rank, self.world), daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))
        for rank in range(self.world):
            good, answer = self._answer(rank, STARTUP_SECONDS)
            if not good:
                self.close()
                raise RankError(f"rank {rank} did not start: {answer}")

    def _answer(self, rank: int, timeout: float) -> tuple[bool, Any]:
        pipe = self._ranks[rank][1]
        try:
            if not pipe.poll(timeout):
                return False, f"no answer within {timeout:.0f} s: it hangs"
            good, answer = pipe.recv()
        except (EOFError, ConnectionError):
            return False, "it died"
        return bool(good), answer


def _serve(pipe: Connection, store: str, rank: int, world: int) -> None:
    """What a rank does: join the group, then answer calls until the pipe closes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=20)
    )
    pipe.send((True, rank))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*args))
        except BaseException:  # told to the test, which fails with it
            answer = (False, traceback.format_exc())
        pipe.send(answer)
