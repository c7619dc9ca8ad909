"""Jobs so small that a whole study of them takes seconds: a micro model on a little text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import (
    ConfirmConfig,
    DataConfig,
    HybridConfig,
    JobConfig,
    ModelConfig,
    ResourcesConfig,
    SearchConfig,
    TrainConfig,
)
from hybrid_ray.run_result import Evaluation, Heldout, Replay, RunResult


def micro_job(folder: Path, **sections: Any) -> JobConfig:
    """A job that keeps studies and cache in ``folder``; ``sections`` replace whole sections of it."""
    job = JobConfig(
        name="micro",
        studies_dir=str(folder / "studies"),
        model=ModelConfig(preset="micro"),
        data=DataConfig(max_bytes=200_000, heldout_tokens=2048, cache_dir=str(folder / "cache")),
        train=TrainConfig(
            steps=60, batch_size=4, sequence_length=16, evaluations=4, calibration_steps=5, learning_rate=1e-2
        ),
        hybrid=HybridConfig(
            warmup_steps=10, full_steps=3, correct_steps=1, predictor={"name": "ema_nesterov", "time_constant": 10.0}
        ),
        search=SearchConfig(trials=4, startup_trials=4, grace_steps=20),
        confirm=ConfirmConfig(best=1, seeds=3),
        resources=ResourcesConfig(max_concurrent=2),
    )
    return replace(job, **sections)


def plain_result(*, real: int = 100, predicted: int = 0, seconds: float = 1.0, **changes: Any) -> RunResult:
    """A finished run of 100 real steps whose loss falls from 5 to 2, at 10 ms a plain step."""
    curve = tuple(
        Evaluation(step=step, loss=6.0 - 0.04 * step, real_steps=step, train_seconds=0.01 * step, time=float(step))
        for step in (25, 50, 75, 100)
    )
    result = RunResult(
        arm="baseline",
        seed=0,
        status="finished",
        step_seconds=0.01,
        heldout={"val": Heldout(loss=2.0, standard_error=0.01, tokens=1000)},
        curve=curve,
        phase_seconds={"full": seconds},
        part_seconds={},
        other_seconds={},
        tokens={},
        replay=Replay(phases="F" * real + "P" * predicted, norms=()),
    )
    return replace(result, **changes)
