"""Decide which runs may be compared: those with the same hardware class, software, corpus and settings.

A run's configuration records the requested settings; its fingerprint records what the run actually used. Without this
check, a run on another kind of worker, with an updated torch, or with settings that fell back would be paired with the
other runs silently.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from hybrid_ray.objective import mismatches
from hybrid_ray.run_result import RunResult

__all__ = ["comparable", "fingerprint_of"]


def fingerprint_of(results: Iterable[RunResult]) -> Mapping[str, Any] | None:
    """Fingerprint of the first finished baseline, else of the first finished run; None if no run finished."""
    finished = [result for result in results if result.status == "finished"]
    baselines = [result for result in finished if result.arm == "baseline"]
    return next((result.fingerprint for result in (*baselines, *finished)), None)


def comparable(
    results: Iterable[RunResult], fingerprint: Mapping[str, Any] | None, *, but: Collection[str] = ()
) -> list[RunResult]:
    """Return the results, with every finished run that has another fingerprint marked as failed (reason in ``error``).

    Args:
        fingerprint: the fingerprint that every run must have. None: no run finished, so nothing is checked.
        but: fingerprint entries in which the runs may differ.
    """
    return [_checked(result, fingerprint, but) for result in results]


def _checked(result: RunResult, fingerprint: Mapping[str, Any] | None, but: Collection[str]) -> RunResult:
    if fingerprint is None or result.status != "finished":
        return result
    differences = mismatches(fingerprint, result.fingerprint, but=but)
    return replace(result, status="failed", error="; ".join(differences)) if differences else result
