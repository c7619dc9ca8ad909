"""The order of the steps, as a pure state machine that does not use weights, losses or time.

The next step depends on the last one and on one number, ``entry``: the horizon of the prediction that may start now
(0: none). The machine reads it only where the drawing says "decide"::

                        +------------------------------ decide: entry = 0 ---+
                        v                                                    |
    WARMUP --all done--> FULL --full_steps done--> decide --entry = H > 0--+ |
                        ^ |                                                v |
                        | +---- decide: entry = 0 (Full again)          PREDICT <--------+
                        |                                              H steps |  |         |
                        |                          every correction_interval   |  +-> CORRECT (micro, one step)
                        |                          of them, not after the last |
                        +-- correct_steps = 0 ---------------------------------+
                        |                                                      v
                        +-- decide: entry = 0 ------------------------- CORRECT (correct_steps)
                                                                               | decide: entry = H > 0
                                                                               +----------> PREDICT

A fall-back (after divergence) leads from every state directly to FULL.

A run may instead follow the letters of a recorded one (`hybrid_ray.run_result.Replay`): W warmup, F full, P predicted,
M micro-correction, C correct. Steps past the end of the recording are FULL.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.run_result import PHASE_OF

__all__ = ["Phase", "PhaseMachine", "Position"]


class Phase(StrEnum):
    """The kind of a step. Every kind except PREDICT computes gradients."""

    WARMUP = "warmup"
    FULL = "full"
    PREDICT = "predict"
    CORRECT = "correct"


_PHASES = {letter: Phase(name) for letter, name in PHASE_OF.items()}
_LETTERS = {phase: letter for letter, phase in _PHASES.items() if letter != "M"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """One step: its phase, its number in the phase (from 1), and the progress of its prediction."""

    phase: Phase
    index: int
    predicted: int = 0  # predicted steps of this prediction so far, including this one; 0 outside a prediction
    horizon: int = 0  # horizon of the current prediction; 0 outside a prediction
    micro: bool = False  # a single real step inside a prediction

    @property
    def inside(self) -> bool:
        """Whether a prediction is under way: a predicted step or a micro-correction."""
        return self.phase is Phase.PREDICT or self.micro

    @property
    def letter(self) -> str:
        return "M" if self.micro else _LETTERS[self.phase]


class PhaseMachine:
    """Chooses the next step and records one letter for each step done. This is the only record of a run's steps.

    Args:
        config: the lengths of the phases, and in which part of the run predictions are made.
        recording: letters to follow; None: decide by ``entry``.
        total_steps: nominal steps of the run; None: predictions never end.
    """

    def __init__(self, config: HybridConfig, recording: str | None = None, *, total_steps: int | None = None) -> None:
        self._config = config
        self._total = total_steps
        self._recording = recording
        if recording is not None:
            _check(recording)
        self._done = bytearray()
        self.position = self._first()

    @property
    def letters(self) -> str:
        """One letter for each nominal step done (`hybrid_ray.run_result.Replay`)."""
        return self._done.decode()

    @property
    def steps(self) -> int:
        """Nominal steps done."""
        return len(self._done)

    @property
    def decides(self) -> bool:
        """Whether a prediction may start after the step at ``position``."""
        at = self.position
        if at.inside:
            return False
        if self._recording is not None and self._letter(self.steps + 1) == "P":
            return True
        if at.phase is Phase.FULL:
            return at.index % self._config.full_steps == 0
        return at.phase is Phase.CORRECT and self._last_of_stretch(self._config.correct_steps)

    @property
    def ends_window(self) -> bool:
        """Whether a window of real steps ends after this step: at each decision, and every ``full_steps`` of WARMUP."""
        at = self.position
        if at.phase is Phase.WARMUP:
            return at.index % self._config.full_steps == 0 or self._last_of_stretch(self._config.warmup_steps)
        return self.decides

    @property
    def half_way(self) -> bool:
        """Whether the step at ``position`` completes the first half of its window, if no fall-back ends it early."""
        at, config = self.position, self._config
        steps = config.correct_steps if at.phase is Phase.CORRECT else config.full_steps
        return steps > 0 and at.index % steps == steps // 2

    @property
    def over(self) -> bool:
        """Whether no further prediction can start, including right after the step at ``position``."""
        if self._recording is not None:
            return self.steps >= self._recording.rfind("P")
        return self.steps + 1 >= self._end

    def has_room(self, horizon: int) -> bool:
        """Whether a prediction that starts after the step at ``position`` fits, with its correction steps, into the
        part of the run that allows predictions.
        """
        config = self._config
        if self._total is not None and self.steps + 1 < self._total * config.predicts_from:
            return False
        micro = (horizon - 1) // config.correction_interval if config.correction_interval else 0
        return self.steps + 1 + horizon + micro + config.correct_steps <= self._end

    @property
    def _end(self) -> float:
        """The nominal step where the last ``off_fraction`` of the run begins; all later ones are real."""
        return math.inf if self._total is None else self._total * self._config.predicts_until

    @property
    def upcoming_horizon(self) -> int | None:
        """The horizon of the recorded prediction that starts next; None without a recording, or if none starts next."""
        if self._recording is None or self._letter(self.steps + 1) != "P":
            return None
        return self._recorded_horizon(self.steps + 1)

    def restart(self) -> None:
        """Make the next step the first of FULL, unless the run is still in WARMUP or follows a recording."""
        if self._recording is None and self.position.phase is not Phase.WARMUP:
            self.position = Position(phase=Phase.FULL, index=1)

    def advance(self, *, entry: int = 0, fall_back: bool = False) -> None:
        """Record the current step and move to the next one.

        Args:
            entry: steps to predict if the machine is at a decision; 0: none. Ignored if the run follows a recording.
            fall_back: go to FULL from any phase. Ignored if the run follows a recording.
        """
        if self._recording is not None:
            following = self._recorded()
        elif fall_back:
            following = Position(phase=Phase.FULL, index=1)
        else:
            following = self._following(entry if self.decides else 0)
        self._done += self.position.letter.encode()
        self.position = following

    def _following(self, entry: int) -> Position:
        at, config = self.position, self._config
        if at.phase is Phase.PREDICT:
            if at.predicted == at.horizon:
                return Position(phase=Phase.CORRECT if config.correct_steps else Phase.FULL, index=1)
            if config.correction_interval and at.predicted % config.correction_interval == 0:
                return Position(phase=Phase.CORRECT, index=1, predicted=at.predicted, horizon=at.horizon, micro=True)
        if at.inside:
            done = at.predicted + 1
            return Position(phase=Phase.PREDICT, index=done, predicted=done, horizon=at.horizon)
        if entry:
            return Position(phase=Phase.PREDICT, index=1, predicted=1, horizon=entry)
        length = {
            Phase.WARMUP: config.warmup_steps,
            Phase.FULL: config.full_steps,
            Phase.CORRECT: config.correct_steps,
        }
        if at.index < length[at.phase]:
            return Position(phase=at.phase, index=at.index + 1)
        return Position(phase=Phase.FULL, index=1)

    def _first(self) -> Position:
        if self._recording is not None:
            return Position(phase=_PHASES[self._letter(0)], index=1)
        return Position(phase=Phase.WARMUP if self._config.warmup_steps else Phase.FULL, index=1)

    def _last_of_stretch(self, length: int) -> bool:
        if self._recording is not None:
            return self._letter(self.steps + 1) != self._letter(self.steps)
        return self.position.index == length

    def _letter(self, step: int) -> str:
        assert self._recording is not None
        return self._recording[step] if step < len(self._recording) else "F"

    def _recorded(self) -> Position:
        at, letter = self.position, self._letter(self.steps + 1)
        phase = _PHASES[letter]
        if letter == "P" and not at.inside:
            return Position(phase=phase, index=1, predicted=1, horizon=self._recorded_horizon(self.steps + 1))
        if letter == "P":
            return Position(phase=phase, index=at.predicted + 1, predicted=at.predicted + 1, horizon=at.horizon)
        if letter == "M":
            return Position(phase=phase, index=1, predicted=at.predicted, horizon=at.horizon, micro=True)
        return Position(phase=phase, index=at.index + 1 if at.phase is phase and not at.micro else 1)

    def _recorded_horizon(self, start: int) -> int:
        assert self._recording is not None
        rest = self._recording[start:]
        return rest[: len(rest) - len(rest.lstrip("PM"))].count("P")

    def state_dict(self) -> dict[str, Any]:
        return {"letters": self.letters, "position": asdict(self.position) | {"phase": str(self.position.phase)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done = bytearray(state["letters"].encode())
        self.position = Position(**(state["position"] | {"phase": Phase(state["position"]["phase"])}))


def _check(letters: str) -> None:
    """Check that a recording starts, and changes from letter to letter, as the state machine allows."""
    strange = sorted(set(letters) - set("WFPMC"))
    if strange:
        raise ConfigError(f"replay phases have the letters {strange} but only W, F, P, M and C are known")
    if letters.startswith(("P", "M", "C")):
        raise ConfigError(f"replay phases start with {letters[0]!r} but a run starts with W or F")
    for first, second in (("F", "M"), ("W", "M"), ("C", "M"), ("M", "M"), ("W", "P"), ("F", "C"), ("W", "C")):
        if first + second in letters:
            raise ConfigError(f"replay phases have {second!r} right after {first!r}, which no run does")
