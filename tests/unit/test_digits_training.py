"""The CNN on rendered digits through the one loop: accuracy, resuming, what is refused, what it would cost."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_runs import Listener

from hybrid_ray.config import DataConfig, HybridConfig, JobConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.config.jobfile import job_from_dict
from hybrid_ray.data.digits import heldout_digits, prepare_digits
from hybrid_ray.errors import ConfigError
from hybrid_ray.memory.estimate import memory_need
from hybrid_ray.models import CNN
from hybrid_ray.study.plan import plan
from hybrid_ray.tasks import load_task
from hybrid_ray.training.heldout import heldout_loss
from hybrid_ray.training.loop import train

DIGITS = {"model": {"preset": "cnn"}, "data": {"corpus": "digits"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return RunConfig(
        model=ModelConfig(preset="cnn"),
        data=DataConfig(corpus="digits", cache_dir=str(tmp_path_factory.mktemp("digits"))),
        train=TrainConfig(
            steps=30, batch_size=32, evaluations=2, calibration_steps=5, learning_rate=5e-3, checkpoint_every=10
        ),
        hybrid=HybridConfig(
            warmup_steps=6, full_steps=4, correct_steps=2, prediction_horizon=3, confidence_threshold=0.0
        ),
    )


def test_a_hybrid_run_is_scored_by_accuracy_and_counts_pictures(run: RunConfig) -> None:
    found = train(run)
    assert found.status == "finished"
    assert found.predicted_steps > 0
    assert found.tokens_read == found.tokens["gradient"] == 32 * found.real_steps
    for heldout in found.heldout.values():
        assert heldout.tokens == 5_000
        assert heldout.accuracy is not None
        assert 0.05 < heldout.accuracy < 1.0
        assert heldout.loss < 2.3
    assert found.fingerprint["corpus"] == load_task(run).fingerprint


def test_heldout_loss_and_accuracy_are_those_of_the_whole_split(run: RunConfig) -> None:
    torch.manual_seed(0)
    model, digits = CNN(), prepare_digits(run.data.cache_dir)
    cpu, as_it_is = torch.device("cpu"), contextlib.nullcontext
    found = heldout_loss(model, load_task(run), "decide", device=cpu, precision=as_it_is, share=True)
    images, labels = next(heldout_digits(digits, "decide", batch_size=5_000))
    assert found.loss == pytest.approx(model(images, labels).item(), abs=1e-5)
    _, accuracy = model.loss_and_accuracy(images, labels)
    assert found.accuracy == pytest.approx(accuracy.item(), abs=1e-6)


def test_text_has_no_accuracy(run: RunConfig, tmp_path: Path) -> None:
    text = DataConfig(corpus="random", max_bytes=100_000, heldout_tokens=1024, cache_dir=str(tmp_path))
    settings = replace(run.train, steps=10, batch_size=2, sequence_length=16, evaluations=1, checkpoint_every=0)
    found = train(replace(run, model=ModelConfig(preset="micro"), data=text, train=settings))
    assert {heldout.accuracy for heldout in found.heldout.values()} == {None}


def test_a_stopped_run_goes_on_to_the_same_end(run: RunConfig, tmp_path: Path) -> None:
    whole = train(run, directory=tmp_path / "whole")
    stopped = train(run, reporter=Listener({1: "stopped"}), directory=tmp_path / "parted")
    assert (stopped.status, stopped.steps < whole.steps) == ("stopped", True)
    assert train(run, directory=tmp_path / "parted").heldout == whole.heldout


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"data": {}}, "model.preset is 'cnn' and data.corpus is 'stdlib' but that model reads pictures"),
        ({"model": {"preset": "nano"}}, "that model reads text: to train on digits, set model.preset to cnn"),
        ({"model": {"preset": "cnn", "loss_chunks": 4}}, "model.loss_chunks is 4 but the cnn has none"),
        ({"model": {"preset": "cnn", "dropout": 0.1}}, "model.dropout is 0.1 but the cnn has none"),
        ({"data": {"corpus": "digits", "tokenizer": "bpe"}}, "data.tokenizer is 'bpe' but digits are not text"),
        ({"train": {"parallel": "fsdp"}}, "the cnn has no blocks to shard"),
    ],
)
def test_what_says_nothing_to_pictures_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict({**DIGITS, **changes})
    assert any(part in problem for problem in caught.value.problems)


def test_its_memory_is_that_of_a_process_and_its_plan_is_timed(run: RunConfig) -> None:
    job = JobConfig(model=run.model, data=run.data, train=replace(run.train, steps=60), hybrid=run.hybrid)
    need = memory_need(job.run(), load_task(job.run()))
    assert need.process < need.total < need.process + 30 * 2**20
    assert need.weights == 4 * 49_022
    planned = plan(job)
    assert 1e-4 < planned.step_seconds < 2.0
    assert "per real step" in planned.text
