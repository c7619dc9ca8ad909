"""The text a finished run leaves for the report: the model's own, without a trace in the run, not training time."""

from dataclasses import replace

import pytest
import torch
from micro_runs import CYCLES, Listener, micro_run

from hybrid_ray.config import DataConfig, ModelConfig
from hybrid_ray.data import prepare_text
from hybrid_ray.run_result import RunResult
from hybrid_ray.training.loop import train


def test_a_finished_run_writes_and_is_otherwise_as_it_was() -> None:
    run = micro_run(hybrid=CYCLES, dropout=0.1, sample_tokens=20)
    writes, silent = Listener(), Listener()
    result = train(run, reporter=writes)
    mute = train(replace(run, train=replace(run.train, sample_tokens=0)), reporter=silent)
    assert result.sample
    assert len(result.sample) <= 2 * 20  # bytes, and a blank line where a file ends
    assert mute.sample is None
    assert writes.evaluations[-1].loss == silent.evaluations[-1].loss
    assert result.heldout == mute.heldout
    assert result.other_seconds["sample"] < 5
    assert train(run).sample == result.sample
    assert RunResult.from_dict(result.as_dict()).sample == result.sample


def test_the_text_is_what_the_trained_weights_say() -> None:
    """More training, other text: untrained weights write bytes of all kinds, trained ones source text."""
    run = micro_run(steps=200, learning_rate=1e-2, evaluations=1, sample_tokens=64)
    result = train(run)
    assert result.sample is not None
    assert sum(character.isascii() for character in result.sample) > 0.95 * len(result.sample)
    assert "\ufffd" not in result.sample
    short = train(replace(run, train=replace(run.train, steps=10)))
    assert short.sample != result.sample


@pytest.mark.parametrize(
    "changed",
    [
        {"arm": "frontier"},
        {"data": DataConfig(corpus="random", max_bytes=100_000, heldout_tokens=2048)},
        {"data": DataConfig(corpus="digits"), "model": ModelConfig(preset="cnn")},
    ],
    ids=["frontier", "random tokens", "pictures"],
)
def test_no_text_where_nobody_reads_it(changed: dict[str, object]) -> None:
    result = train(replace(micro_run(steps=10, evaluations=1), **changed))
    assert result.status == "finished"
    assert result.sample is None


def test_a_run_that_was_stopped_writes_nothing() -> None:
    assert train(micro_run(), reporter=Listener({1: "stopped"})).sample is None


def test_every_vocabulary_with_text_has_a_token_that_ends_a_file() -> None:
    for settings in ({}, {"tokenizer": "bpe", "vocab_size": 300}):
        corpus = prepare_text(DataConfig(max_bytes=300_000, heldout_tokens=2048, **settings))
        end = corpus.vocabulary.end
        assert end is not None
        assert corpus.decode([end]) == "\n\n"
        assert int(torch.tensor(corpus.train[:].astype("int64")).eq(end).sum()) > 5  # the model has met it
