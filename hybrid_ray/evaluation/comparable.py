"""Which runs may stand beside each other: those of one hardware class, software, corpus and setting.

What a run was asked is told by its configuration; what it got by its fingerprint. A worker of another kind, an updated
torch, or a run that fell back to less than was asked would be paired with the others in silence.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from hybrid_ray.objective import mismatches
from hybrid_ray.run_result import RunResult

__all__ = ["comparable", "fingerprint_of"]


def fingerprint_of(results: Iterable[RunResult]) -> Mapping[str, Any] | None:
    """Of the first finished baseline, or where there is none of the first finished run; None if nothing finished."""
    finished = [result for result in results if result.status == "finished"]
    baselines = [result for result in finished if result.arm == "baseline"]
    return next((result.fingerprint for result in (*baselines, *finished)), None)


def comparable(
    results: Iterable[RunResult], fingerprint: Mapping[str, Any] | None, *, but: Collection[str] = ()
) -> list[RunResult]:
    """The results; a finished run with another fingerprint has failed, and its ``error`` says why.

    Args:
        fingerprint: what all are compared with; None: nothing finished that they could be.
        but: entries of a fingerprint in which runs may differ.
    """
    return [_checked(result, fingerprint, but) for result in results]


def _checked(result: RunResult, fingerprint: Mapping[str, Any] | None, but: Collection[str]) -> RunResult:
    if fingerprint is None or result.status != "finished":
        return result
    differences = mismatches(fingerprint, result.fingerprint, but=but)
    return replace(result, status="failed", error="; ".join(differences)) if differences else result
