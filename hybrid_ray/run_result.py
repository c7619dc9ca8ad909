"""The records of a run: steps, evaluations, the result, a trial's row. Plain values that convert to and from JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

__all__ = [
    "MEASURES",
    "PHASES",
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
    "backward_share",
    "was_trained",
]

Status = Literal["finished", "stopped", "diverged", "failed"]

PHASE_OF = {"W": "warmup", "F": "full", "P": "predict", "M": "correct", "C": "correct"}
"""The phase of each letter of a `Replay`. A micro-correction (M) is a real step between predicted steps."""

PHASES = tuple(dict.fromkeys(PHASE_OF.values()))
"""All phases, in the order in which a run first has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One nominal step. Loss in the task's unit (nats per token for GPT-2); wall seconds, device synchronised."""

    step: int  # 1-based, the nominal step just done
    phase: str  # warmup, full, predict, correct
    predicted: bool
    loss: float | None  # None on a predicted step
    confidence: float | None  # None: no decision needs one, so it is not computed
    learning_rate: float
    grad_norm: float | None
    seconds: float
    level: str = "normal"  # divergence level
    event: str | None = None  # a recovery action, a refused update, ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A held-out loss at one nominal step, and the run's cost up to it."""

    step: int
    loss: float  # on the val split, in the task's unit (nats per token for GPT-2)
    real_steps: int
    train_seconds: float  # synchronised; without evaluation, checkpoints, compilation and calibration
    time: float  # training time in plain steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Heldout:
    """Mean loss on a held-out split and the standard error of that mean. Units: `hybrid_ray.Task`."""

    loss: float
    standard_error: float
    tokens: int  # size of the split, in the task's unit
    accuracy: float | None = None  # of a classifier, 0 to 1
    metrics: Mapping[str, float] = field(default_factory=dict)  # the task's other metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The decisions of a hybrid run, which a control repeats. All counts of a run's steps derive from them.

    ``phases`` has one letter per nominal step: W warmup, F full, P predicted, M micro-correction, C correct.
    ``norms`` has one entry per prediction: the norm of its whole displacement, by parameter group of the optimizer.
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
        """Nominal steps by phase, for the phases that occurred."""
        counts: Counter[str] = Counter()
        for letter, phase in PHASE_OF.items():
            counts[phase] += self.phases.count(letter)
        return {phase: count for phase, count in counts.items() if count}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """The result of one run, without its steps.

    ``step_seconds`` is the seconds per plain step: data, forward, backward and optimizer of the run's own real steps.
    With ``train.clock_optimizer``, ``optimizer_cost`` is the step time of the run's optimizer / of that optimizer, and
    the optimizer's part of ``step_seconds`` is divided by it.
    ``real_step_cost`` is the time of a real step's plain parts / of the same step without prediction, measured in turns
    before the run: 1 unless the method slows its own real steps, which its own unit of time would hide.
    """

    arm: str
    seed: int
    status: Status
    step_seconds: float
    heldout: Mapping[str, Heldout]  # by split; val and test at the end of a finished run
    curve: tuple[Evaluation, ...]
    phase_seconds: Mapping[str, float]  # synchronised; together the training time
    part_seconds: Mapping[str, float]  # data, forward, backward, optimizer (real steps); predict, overhead, offload
    other_seconds: Mapping[str, float]  # setup, calibration, evaluation, checkpoint, compile: not training time
    tokens: Mapping[str, int]  # gradient, forward_only
    replay: Replay
    statistics: Mapping[str, Any] = field(default_factory=dict)  # HybridTrainer.measures(), and extremes of the run
    fingerprint: Mapping[str, Any] = field(default_factory=dict)  # hardware, software, data: compared runs share it
    machine: Mapping[str, Any] = field(default_factory=dict)  # what the device did: memory, power, compilation
    real_step_cost: float = 1.0
    optimizer_cost: float = 1.0
    sample: str | None = None  # what the finished model writes, for the report (training/generated_text.py)
    error: str | None = None

    @property
    def steps(self) -> int:
        """Number of nominal steps."""
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
        """Training time in plain steps: training seconds divided by the seconds of its plain step."""
        return self.train_seconds / self.step_seconds

    @property
    def predicted_share(self) -> float:
        return self.predicted_steps / max(1, self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without loss."""
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


def backward_share(results: Iterable[RunResult]) -> float | None:
    """Share of a real step's time spent in backward and optimizer, over all these runs; None if none was timed.

    It bounds the speedup: b in docs/method.md, section 2.
    """
    parts: Counter[str] = Counter()
    for result in results:
        parts.update(result.part_seconds)
    whole = sum(parts[part] for part in ("data", "forward", "backward", "optimizer"))
    return (parts["backward"] + parts["optimizer"]) / whole if whole else None


class TrialEnd(StrEnum):
    """How a searched trial ended."""

    FINISHED = "finished"
    STOPPED_EARLY = "stopped"  # by the scheduler
    DIVERGED = "diverged"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"  # stopped with the driver: it does not count, and its settings are queued again

    @property
    def state(self) -> str:
        """The state in Optuna's terms."""
        return _STATES.get(self, "FAIL")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "TrialEnd":
        """The end stored in a trial's row or last report."""
        return cls(row.get("end") or row["status"])


_STATES = {TrialEnd.FINISHED: "COMPLETE", TrialEnd.STOPPED_EARLY: "PRUNED", TrialEnd.DIVERGED: "PRUNED"}


Measure = float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """A trial's row in ``trials.jsonl`` and `load_study`. Searched settings are further columns, ``params_<name>``.

    Measures are None if unknown: for a failed trial, or ``net_speedup`` outside the frontier's range.
    """

    number: int
    state: str  # as in Optuna
    preset: str | None
    equal_to: int | None  # the trial that trains the same weights; this one was not trained and has its measures
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
    step_seconds: Measure = None
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


def was_trained(row: Mapping[str, Any]) -> bool:
    """Whether a row's trial has a run of its own, and not the result of an equal trial."""
    return row.get("equal_to") is None or row["equal_to"] != row["equal_to"]  # NaN in a data frame


MEASURES = tuple(column.name for column in fields(TrialRow) if column.default is None)
"""The columns that come from a trial's last report."""
