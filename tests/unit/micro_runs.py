"""Runs small enough for a test: a micro GPT on a little text, a second or less each."""

from typing import Any

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.run_result import Evaluation, Replay, Status, StepRecord

DATA = DataConfig(max_bytes=1_000_000, heldout_tokens=8192)
CYCLES = HybridConfig(
    warmup_steps=6, full_steps=4, correct_steps=2, prediction_horizon=3, confidence_threshold=0.0,
    predictor={"name": "ema_nesterov", "gain": 1.0, "time_constant": 100.0}, first_fraction=0.0, off_fraction=0.25,
)  # fmt: skip


def micro_run(
    *, hybrid: HybridConfig | None = None, seed: int = 0, workers: int = 1, dropout: float = 0.0, **train: Any
) -> RunConfig:
    """A baseline unless ``hybrid`` says otherwise."""
    settings = {"steps": 40, "batch_size": 8, "sequence_length": 32, "evaluations": 4, "calibration_steps": 5, **train}
    return RunConfig(
        arm="hybrid" if hybrid else "baseline",
        seed=seed,
        model=ModelConfig(preset="micro", dropout=dropout),
        data=DATA,
        train=TrainConfig(**settings),
        hybrid=hybrid or HybridConfig(predictor="none"),
        workers=workers,
    )


class Listener:
    """Remembers what it is told; ``ends`` is what it answers at the evaluation of that number."""

    def __init__(self, ends: dict[int, Status] | None = None) -> None:
        self.steps: list[StepRecord] = []
        self.evaluations: list[Evaluation] = []
        self._ends = ends or {}

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        self.evaluations.append(evaluation)
        return self._ends.get(len(self.evaluations))
