"""Asks a node of a cluster whether it shares the study's folder, and what hardware and software it has."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.placement import choose_device

__all__ = ["NodeReport", "Probe", "answer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReport:
    """What a node answered. ``unshared``: why it cannot use the folder. ``machine``: None if it lacks the device."""

    unshared: str | None = None
    machine: Mapping[str, Any] | None = None
    problem: str | None = None  # why there is no machine


class Probe:
    """A question to one node: a small task that takes no resources, so a busy node answers too.

    The driver writes a random token to the folder. The node reads it and writes it back, and the driver reads that.
    """

    def __init__(self, node: str, folder: Path, run: RunConfig) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._token = secrets.token_hex(16)
        self._question, self._answer = folder / f"probe-{self._token}", folder / f"probe-{self._token}-answer"
        self._question.write_text(self._token, encoding="utf-8")
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(answer).options(num_cpus=0, max_retries=1, scheduling_strategy=there)
        self.reference: Any = task.remote(self._question, self._answer, self._token, run)

    def report(self) -> NodeReport | None:
        """The node's answer; None if the node has gone away. Waits for it."""
        import ray
        from ray.exceptions import RayError

        try:
            found: NodeReport = ray.get(self.reference)
            if found.unshared is None and self._answer.read_text(encoding="utf-8") != self._token:
                raise OSError("other content")
        except RayError:
            return None
        except OSError:
            found = NodeReport(unshared="the driver does not see what the node writes there")
        self.close()
        return found

    def close(self) -> None:
        """Remove the probe's files."""
        for file in (self._question, self._answer):
            file.unlink(missing_ok=True)


def answer(question: Path, place: Path, token: str, run: RunConfig) -> NodeReport:
    """What runs on the node: read the token, write it back, and look at the hardware."""
    try:
        if question.read_text(encoding="utf-8") != token:
            return NodeReport(unshared="it holds another file there")
        place.write_text(token, encoding="utf-8")
    except OSError as error:
        return NodeReport(unshared=error.strerror or str(error))
    try:
        return NodeReport(machine=machine(run, choose_device(run)))
    except ConfigError as error:
        return NodeReport(problem=str(error))
