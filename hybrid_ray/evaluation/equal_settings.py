"""Recognise settings of the method that train the same weights, so that a search trains only one of them.

Two rules, both exact:

- A setting without an effect does not tell trials apart (`effective`): known before anything is trained.
- Two thresholds are equal if no confidence of a finished run lies between them (`equal_thresholds`): known from its
  record.

A user's own predictor may read any setting, so with one only identical settings are equal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import HybridConfig
from hybrid_ray.config.predictors import OPTIONS
from hybrid_ray.method.guard.divergence import Recovery
from hybrid_ray.method.phases import PhaseMachine
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.parquet import read_steps
from hybrid_ray.storage.run_cache import read_result

__all__ = ["TrainedSettings", "effective", "equal_thresholds"]

_HARMLESS = {str(Recovery.REDUCE_PREDICT_RATIO), "overflow"}
"""Events that change neither the threshold nor which steps are decisions."""


def effective(hybrid: HybridConfig) -> HybridConfig:
    """The settings, with each that has no effect set to its default. Equal results train the same weights.

    - ``correction_interval`` from ``prediction_horizon`` on: no micro-correction comes after the last predicted step.
    - ``confidence_threshold`` and ``gate_rate``: each is read by one gate.
    - ``couple_lr``: the jumps of slow_momentum contain the learning rate already. Their length does not depend on the
      horizon, but the number of real steps does, so the horizon has an effect.
    - What may be left to the predictor (``gate``, ``trust``, the fractions) gets the value that is used.
    """
    predictor = hybrid.predictor.name
    if predictor not in OPTIONS:
        return hybrid
    usual, gate = HybridConfig(), hybrid.gate_kind
    return replace(
        hybrid,
        correction_interval=0
        if hybrid.correction_interval >= hybrid.prediction_horizon
        else hybrid.correction_interval,
        confidence_threshold=hybrid.confidence_threshold if gate == "confidence" else usual.confidence_threshold,
        gate_rate=hybrid.gate_rate if gate == "random" else usual.gate_rate,
        couple_lr=hybrid.couple_lr if predictor != "slow_momentum" else usual.couple_lr,
        gate=gate,
        trust=hybrid.trust_kind,
        explore=hybrid.exploration,
        first_fraction=hybrid.predicts_from,
        off_fraction=1.0 - hybrid.predicts_until,
    )


def equal_thresholds(
    hybrid: HybridConfig, result: RunResult, confidences: Sequence[float]
) -> tuple[float, float] | None:
    """The thresholds above the first number and up to the second repeat every decision of a finished run.

    The first is the highest confidence that the threshold refused, the second the lowest that it let through. A
    decision whose confidence reached the threshold but that did not predict was refused for another reason, whatever
    the threshold.

    Args:
        hybrid: the run's settings.
        result: its result.
        confidences: its confidence after each nominal step.

    Returns:
        None if the run does not show it: another gate, a user's own predictor, or a recovery that raised the threshold
        or ended a cycle.
    """
    events = set(result.statistics.get("events", {}))
    letters, steps = result.replay.phases, len(confidences)
    if hybrid.gate_kind != "confidence" or hybrid.horizon_mode == "adaptive" or hybrid.predictor.name not in OPTIONS:
        return None  # with adaptive, the threshold also chooses the length of a jump
    if result.status != "finished" or steps != len(letters) or events - _HARMLESS:
        return None
    whole = hybrid.horizon_mode == "fixed" and not events  # every prediction has the full horizon
    room = hybrid.prediction_horizon if whole else 1
    machine = PhaseMachine(hybrid, letters, total_steps=steps)
    refused, opened = -math.inf, math.inf
    for step, confidence in enumerate(confidences, 1):
        if machine.decides and machine.has_room(room):
            if letters[step : step + 1] == "P":
                # Raised thresholds end at 1, so full confidence passes any.
                opened = min(opened, confidence if confidence < 1.0 else math.inf)
            elif confidence < hybrid.confidence_threshold:
                refused = max(refused, confidence)
        machine.advance()
    return refused, opened


class TrainedSettings:
    """The trials that a search trains or has trained, by their settings.

    Args:
        settings: the settings of the method for a trial's values.
        directory: the run directory of a trial, by its number; None if runs leave no files.
    """

    def __init__(
        self,
        settings: Callable[[Mapping[str, Any]], HybridConfig],
        *,
        directory: Callable[[int], Path] | None = None,
    ) -> None:
        self._settings, self._directory = settings, directory
        self._trials: dict[int, HybridConfig] = {}
        self._any_threshold: dict[int, HybridConfig] = {}  # of trials with a confidence gate: settings but for it
        self._ranges: dict[int, tuple[float, float] | None] = {}  # of finished trials

    def add(self, number: int, params: Mapping[str, Any]) -> None:
        """Trial ``number`` is being trained with these values. Raises ConfigError if they are impossible."""
        self._trials[number] = hybrid = effective(self._settings(params))
        if hybrid.gate_kind == "confidence":
            self._any_threshold[number] = _without_threshold(hybrid)

    def remove(self, number: int) -> None:
        """The trial failed or was interrupted, so its settings may be tried again."""
        self._trials.pop(number, None)
        self._any_threshold.pop(number, None)

    def equal(self, params: Mapping[str, Any]) -> int | None:
        """The number of a trial that trains the same weights, still running or ended; None if there is none.

        Raises:
            ConfigError: the values are impossible.
        """
        wanted = effective(self._settings(params))
        found = next((number for number, hybrid in self._trials.items() if hybrid == wanted), None)
        return self._same_decisions(wanted) if found is None else found

    def _same_decisions(self, wanted: HybridConfig) -> int | None:
        """A finished trial that differs in its threshold only, and would decide the same with this one."""
        if wanted.gate_kind != "confidence":
            return None
        threshold, others = wanted.confidence_threshold, _without_threshold(wanted)
        for number, hybrid in self._any_threshold.items():
            if hybrid == others and (range_ := self._range(number)):
                refused, opened = range_
                if refused < threshold <= opened:
                    return number
        return None

    def _range(self, number: int) -> tuple[float, float] | None:
        if number not in self._ranges:
            directory = None if self._directory is None else self._directory(number)
            result = None if directory is None else read_result(directory)
            if directory is None or result is None:
                return None  # not finished yet
            confidences = [row["confidence"] for row in read_steps(directory)]
            self._ranges[number] = equal_thresholds(self._trials[number], result, confidences)
        return self._ranges[number]


def _without_threshold(hybrid: HybridConfig) -> HybridConfig:
    return replace(hybrid, confidence_threshold=HybridConfig().confidence_threshold)
