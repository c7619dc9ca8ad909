"""What a run leaves behind: step records, evaluations, one result, a trial's row. Plain numbers, JSON in and out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

__all__ = [
    "MEASURES",
    "PHASE_OF",
    "TRIAL_COLUMNS",
    "Evaluation",
    "Heldout",
    "Replay",
    "RunResult",
    "Status",
    "StepRecord",
    "TrialEnd",
    "TrialRow",
]

Status = Literal["finished", "stopped", "diverged", "failed"]

PHASE_OF = {"W": "warmup", "F": "full", "P": "predict", "M": "correct", "C": "correct"}
"""By letter of a `Replay`. A micro-correction (M) is a real step inside a prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One nominal step. Losses in nats a token, seconds of wall time (synchronised)."""

    step: int  # 1-based, the nominal step just done
    phase: str  # warmup, full, predict, correct
    predicted: bool
    loss: float | None  # None on a predicted step
    confidence: float
    learning_rate: float
    grad_norm: float | None
    seconds: float
    level: str = "normal"  # divergence level
    event: str | None = None  # a recovery action, a refused update, ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A held-out loss at one nominal step, and what it had cost so far."""

    step: int
    loss: float  # on the val split, nats a token
    real_steps: int
    train_seconds: float  # synchronised; evaluation, checkpoints, compilation and calibration left out
    time: float  # the same in plain steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Heldout:
    """Mean loss on a held-out split and the standard error of that mean. Units: `hybrid_ray.Task`."""

    loss: float
    standard_error: float
    tokens: int  # or whatever a loss of the task is per
    accuracy: float | None = None  # of a classifier: the share it gets right
    metrics: Mapping[str, float] = field(default_factory=dict)  # others of a task's own


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What a control needs to repeat a hybrid run's decisions.

    ``phases`` has one letter a nominal step: W warmup, F full, P predicted, M micro-correction, C correct.
    ``norms`` has one entry a jump: the norm of its whole displacement, per parameter group of the optimizer.

    The letters are the one account of a run's steps: every other count of them is read off here.
    """

    phases: str
    norms: tuple[tuple[float, ...], ...]

    @property
    def real_steps(self) -> int:
        return len(self.phases) - self.predicted_steps

    @property
    def predicted_steps(self) -> int:
        return self.phases.count("P")

    @property
    def phase_steps(self) -> dict[str, int]:
        """Nominal steps of each phase that the run was in."""
        counts: Counter[str] = Counter()
        for letter, phase in PHASE_OF.items():
            counts[phase] += self.phases.count(letter)
        return {phase: count for phase, count in counts.items() if count}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """All that is kept of one run beside its steps.

    ``calibration`` is seconds of a plain step: data, forward, backward and optimizer of the run's own real steps. If
    time is told in another optimizer's steps, ``optimizer_cost`` is how many times as long the run's own takes, and its
    seconds are divided by it.
    ``plain_step`` is the same measured apart, with prediction off, before the run and at its evaluations.
    Each figure is stored once: steps are read off ``replay``, sums are properties.
    """

    arm: str
    seed: int
    status: Status
    calibration: float
    plain_step: float
    heldout: Mapping[str, Heldout]  # by split; val and test at the end of a finished run
    curve: tuple[Evaluation, ...]
    phase_seconds: Mapping[str, float]  # synchronised; together the training time
    part_seconds: Mapping[str, float]  # data, forward, backward, optimizer (real steps); predict, overhead, offload
    other_seconds: Mapping[str, float]  # setup, calibration, evaluation, checkpoint, compile: not training time
    tokens: Mapping[str, int]  # gradient, forward_only
    replay: Replay
    statistics: Mapping[str, Any] = field(default_factory=dict)  # HybridTrainer.measures(), and extremes of the run
    fingerprint: Mapping[str, Any] = field(
        default_factory=dict
    )  # hardware, software, data: what a comparison must share
    machine: Mapping[str, Any] = field(default_factory=dict)  # what the device did: memory, power, compilation
    optimizer_cost: float = 1.0
    sample: str | None = None  # what the finished model writes, for the report (training/generated_text.py)
    error: str | None = None

    @property
    def steps(self) -> int:
        """Nominal steps done."""
        return len(self.replay.phases)

    @property
    def real_steps(self) -> int:
        return self.replay.real_steps

    @property
    def predicted_steps(self) -> int:
        return self.replay.predicted_steps

    @property
    def phase_steps(self) -> dict[str, int]:
        return self.replay.phase_steps

    @property
    def train_seconds(self) -> float:
        return sum(self.phase_seconds.values())

    @property
    def tokens_read(self) -> int:
        return sum(self.tokens.values())

    @property
    def time(self) -> float:
        """Training time in plain steps: seconds divided by this run's own calibration."""
        return self.train_seconds / self.calibration

    @property
    def real_step_cost(self) -> float:
        """Of a real step of this run, in plain steps measured apart: 1 but for noise, unless the method slows it."""
        return self.calibration / self.plain_step

    @property
    def predicted_share(self) -> float:
        return self.predicted_steps / max(1, self.steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, lossless."""
        plain = asdict(self)
        for row in plain["heldout"].values():
            if not row["metrics"]:
                del row["metrics"]
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunResult":
        values = dict(data)
        values["heldout"] = {split: Heldout(**row) for split, row in values["heldout"].items()}
        values["curve"] = tuple(Evaluation(**row) for row in values["curve"])
        replay = values["replay"]
        values["replay"] = Replay(phases=replay["phases"], norms=tuple(map(tuple, replay["norms"])))
        return cls(**values)


class TrialEnd(StrEnum):
    """How a searched trial ended."""

    FINISHED = "finished"
    STOPPED_EARLY = "stopped"  # by the scheduler
    DIVERGED = "diverged"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"  # with the driver: it is none of the asked trials, its settings are queued again

    @property
    def state(self) -> str:
        """What Optuna calls it."""
        return _STATES.get(self, "FAIL")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "TrialEnd":
        """Of a row or a last report."""
        return cls(row.get("end") or row["status"])


_STATES = {TrialEnd.FINISHED: "COMPLETE", TrialEnd.STOPPED_EARLY: "PRUNED", TrialEnd.DIVERGED: "PRUNED"}


Measure = float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """A searched trial, as ``trials.jsonl`` and `load_study` have it. Its knobs are further columns, ``params_<knob>``.

    Measures are None where there are none: of a failed trial, or ``net_speedup`` off the frontier.
    """

    number: int
    state: str  # as in Optuna
    preset: str | None
    objective: Measure = None
    score: Measure = None
    net_speedup: Measure = None
    net_error: Measure = None  # its standard error, as one run's noise makes it
    excess: Measure = None  # the score less that of plain training stopped at the same time
    speedup: Measure = None
    degradation: Measure = None
    loss: Measure = None
    baseline_loss: Measure = None
    time: Measure = None
    baseline_time: Measure = None
    train_seconds: Measure = None
    calibration: Measure = None
    steps: Measure = None
    real_steps: Measure = None
    predicted_steps: Measure = None
    predicted_share: Measure = None
    diverged: Measure = None
    inert: Measure = None
    status: str | None = None
    error: str | None = None
    end: TrialEnd
    started: float | None
    ended: float | None


TRIAL_COLUMNS = tuple(column.name for column in fields(TrialRow))
MEASURES = tuple(column.name for column in fields(TrialRow) if column.default is None)
"""What a row keeps of a trial's last report."""
