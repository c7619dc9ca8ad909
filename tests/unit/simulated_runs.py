"""An ``Execute`` without training: losses follow a known law, with seed effects and noise of known size."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybrid_ray.config import RunConfig
from hybrid_ray.evaluation.runner import Task
from hybrid_ray.run_result import Evaluation, Heldout, Replay, RunResult
from hybrid_ray.storage.results_version import code_record, run_settings

SHARE = 0.3  # of a simulated hybrid's steps that are predicted


def law(steps: float) -> float:
    """Final held-out loss of a fully decayed run of real steps: nats a token."""
    return 1.2 + 3.0 * steps**-0.4


def result(run: RunConfig, **values: Any) -> RunResult:
    """A finished run of real steps only, unless ``values`` say otherwise."""
    steps = run.train.steps
    loss = values.pop("loss", law(steps))
    seconds = values.pop("train_seconds", 0.02 * steps)
    phases = "F" * values.pop("real_steps", steps) + "P" * values.pop("predicted_steps", 0)
    base: dict[str, Any] = {
        "arm": run.arm,
        "seed": run.seed,
        "status": "finished",
        "step_seconds": 0.02,
        "heldout": {split: Heldout(loss=loss, standard_error=0.001, tokens=65536) for split in ("val", "test")},
        "curve": tuple(
            Evaluation(
                step=steps * part // 4,
                loss=loss * (4 / part) ** 0.1,
                real_steps=steps * part // 4,
                train_seconds=seconds * part / 4,
                time=seconds * part / 4 / float(values.get("step_seconds", 0.02)),
            )
            for part in range(1, 5)
        ),
        "phase_seconds": {"full": seconds, "predict": 0.0},
        "part_seconds": {},
        "other_seconds": {},
        "tokens": {"gradient": steps, "forward_only": 0},
        "replay": Replay(phases=phases, norms=()),
        "statistics": {"displacement_ratio": 1.3},
    }
    return RunResult(**{**base, **values})


@dataclass
class Simulator:
    """Runs tasks by the law. ``gain``: the hybrid is as good as that many times its real steps; 1 is the null.

    ``noise`` is the standard deviation of a run's log loss, ``seed_noise`` of what all runs of a seed share,
    ``clock_noise`` of log time; ``real_step_cost`` is how many times dearer than plain steps the hybrid's real ones
    are measured before it starts, ``hidden_cost`` how many times dearer in the whole run. ``learning_rate`` is the
    best one, of a hybrid ``hybrid_rate`` times it; away from it losses rise. ``peers`` has by optimizer what
    ``gain`` is to the hybrid, and how many plain steps its step takes. ``ran`` lists every run.
    """

    gain: float = 1.0
    noise: float = 0.0
    seed_noise: float = 0.0
    clock_noise: float = 0.0
    learning_rate: float = 3e-3
    hybrid_rate: float = 1.0
    peers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    share: float = SHARE
    real_step_cost: float = 1.0
    hidden_cost: float = 1.0
    stream: int = 0
    write: bool = False
    broken: Callable[[RunConfig], str | None] = lambda run: None
    fingerprint: Callable[[RunConfig], dict[str, Any]] = lambda run: {}

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.stream)
        self.seed_effects: dict[int, float] = {}
        self.ran: list[RunConfig] = []

    def __call__(self, tasks: Sequence[Task]) -> list[RunResult]:
        return [self.one(task) for task in tasks]

    def one(self, task: Task) -> RunResult:
        run = task.run
        self.ran.append(run)
        predicts = run.hybrid.predictor.name != "none"
        predicted = round(run.train.steps * self.share) if predicts else 0
        real = run.train.steps - predicted
        gain, cost = self.peers.get(run.train.optimizer, (1.0, 1.0))
        gain = self.gain if run.arm == "hybrid" else gain
        seed_effect = self.seed_effects.setdefault(run.seed, self.rng.normal(0, self.seed_noise))
        best_rate = self.learning_rate * (self.hybrid_rate if run.arm == "hybrid" else 1.0)
        untuned = 0.05 * math.log(run.optimizer_settings.learning_rate / best_rate) ** 2
        seconds = 0.02 * (self.hidden_cost if run.arm == "hybrid" else 1.0)
        loss = law(real * gain) * math.exp(seed_effect + self.rng.normal(0, self.noise) + untuned)
        status = self.broken(run) or "finished"
        found = result(
            run,
            loss=loss,
            real_steps=real,
            predicted_steps=predicted,
            step_seconds=seconds,
            train_seconds=seconds * real * cost * math.exp(self.rng.normal(0, self.clock_noise)),
            real_step_cost=self.real_step_cost if run.arm == "hybrid" else 1.0,
            tokens={"read": real, "gradient": real, "forward_only": 0},
            status=status,
            error=None if status == "finished" else "broken on purpose",
            fingerprint=self.fingerprint(run),
            **({} if status == "finished" else {"heldout": {}}),
        )
        if self.write:
            self.keep(task, found)
        return found

    def keep(self, task: Task, found: RunResult) -> None:
        task.directory.mkdir(parents=True, exist_ok=True)
        (task.directory / "code.json").write_text(json.dumps(code_record()))
        (task.directory / "run.json").write_text(json.dumps(run_settings(task.run, task.directory)))
        (task.directory / "result.json").write_text(json.dumps(found.as_dict()))
