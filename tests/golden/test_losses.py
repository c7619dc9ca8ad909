"""Losses of a small baseline, to the digits on which processors agree: a refactor must not change them.

The text is made here, so that it is the same whatever Python is installed. If a change is meant to change training
(say another initialisation), put the new numbers in and say why in the commit.
"""

from pathlib import Path

import pytest

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.training.loop import train

GOLDEN = {15: 3.86913, 30: 2.98094, 45: 2.74812, 60: 2.67893}


def write_text(folder: Path) -> None:
    """Sums and products: text whose form a small model learns quickly."""
    for number in range(120):
        lines = (
            f"{number} + {other} = {number + other}; {number} * {other} = {number * other}" for other in range(100)
        )
        (folder / f"table{number}.txt").write_text("\n".join(lines))


def test_baseline_losses_do_not_drift(tmp_path: Path) -> None:
    text, cache = tmp_path / "text", tmp_path / "cache"
    text.mkdir()
    write_text(text)
    run = RunConfig(
        arm="baseline",
        model=ModelConfig(preset="micro"),
        data=DataConfig(corpus=str(text), heldout_tokens=8192, cache_dir=str(cache)),
        train=TrainConfig(steps=60, batch_size=8, sequence_length=32, evaluations=4, calibration_steps=5),
        hybrid=HybridConfig(predictor="none"),
    )
    result = train(run)
    assert {point.step: point.loss for point in result.curve} == pytest.approx(GOLDEN, rel=1e-3)
