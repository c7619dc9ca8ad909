"""The training stream is one stream however it is cut; a held-out split is read once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid_ray.config import DataConfig
from hybrid_ray.data import BatchSampler, Corpus, heldout_batches, prepare_text
from hybrid_ray.errors import ConfigError

LENGTH = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    cache = str(tmp_path_factory.mktemp("cache"))
    return prepare_text(DataConfig(corpus="random", max_bytes=100_000, heldout_tokens=2000, cache_dir=cache))


def stream(corpus: Corpus, sequences: int, *, batch_size: int, world: int = 1, seed: int = 3) -> Tensor:
    """The stream's first sequences, as ranks that each call ``next`` see them."""
    ranks = [
        BatchSampler(corpus.train, batch_size=batch_size, sequence_length=LENGTH, seed=seed, rank=rank, world=world)
        for rank in range(world)
    ]
    return torch.cat([sampler.next()[0] for _ in range(sequences // batch_size) for sampler in ranks])


def test_targets_are_the_next_tokens(corpus: Corpus) -> None:
    tokens, targets = BatchSampler(corpus.train, batch_size=8, sequence_length=LENGTH, seed=0).next()
    assert tokens.shape == targets.shape == (8, LENGTH)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    text = np.array(corpus.train)
    windows = np.lib.stride_tricks.sliding_window_view(text, LENGTH + 1)
    for row, target in zip(tokens.numpy(), targets.numpy(), strict=True):
        assert (windows == np.append(row, target[-1])).all(axis=1).any()


@settings(deadline=None, max_examples=30)
@given(world=st.sampled_from([1, 2, 3, 4]), per_rank=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_order_does_not_depend_on_ranks_or_micro_batches(corpus: Corpus, world: int, per_rank: int, seed: int) -> None:
    batch_size = world * per_rank
    whole = stream(corpus, 2 * batch_size, batch_size=2 * batch_size, seed=seed)
    assert torch.equal(stream(corpus, 2 * batch_size, batch_size=batch_size, world=world, seed=seed), whole)


def test_seeds_give_different_orders(corpus: Corpus) -> None:
    assert not torch.equal(stream(corpus, 8, batch_size=8, seed=1), stream(corpus, 8, batch_size=8, seed=2))


def test_stream_goes_on_past_what_is_drawn_at_once_and_covers_the_text(corpus: Corpus) -> None:
    sampler = BatchSampler(corpus.train, batch_size=1000, sequence_length=LENGTH, seed=0)
    starts = set(sampler.stream.items(0, 200_000).tolist())
    assert min(starts) >= 0
    assert max(starts) <= sampler.stream.places - 1
    assert len(starts) > 0.97 * sampler.stream.places  # 1 - exp(-4) = 0.98 of places drawn with replacement
    for _ in range(6):
        last = sampler.next()[0]
    assert torch.equal(last, stream(corpus, 6000, batch_size=1000, seed=0)[-1000:])


@settings(deadline=None, max_examples=20)
@given(before=st.integers(0, 9), world=st.sampled_from([1, 2]))
def test_resumes_where_it_was_on_any_number_of_workers(corpus: Corpus, before: int, world: int) -> None:
    first = BatchSampler(corpus.train, batch_size=4, sequence_length=LENGTH, seed=5)
    for _ in range(before):
        first.next()
    state = first.state_dict()
    expected = first.next()[0]
    parts = []
    for rank in range(world):
        again = BatchSampler(corpus.train, batch_size=4, sequence_length=LENGTH, seed=5, rank=rank, world=world)
        again.load_state_dict(state)
        parts.append(again.next()[0])
    assert torch.equal(torch.cat(parts), expected)


def test_state_of_another_stream_is_refused(corpus: Corpus) -> None:
    state = BatchSampler(corpus.train, batch_size=4, sequence_length=LENGTH, seed=5).state_dict()
    with pytest.raises(ConfigError, match="seed 5 but this run has 6"):
        BatchSampler(corpus.train, batch_size=4, sequence_length=LENGTH, seed=6).load_state_dict(state)


def test_batches_that_cannot_be_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="batch_size is 5 but must be a multiple of the 2 workers"):
        BatchSampler(corpus.train, batch_size=5, sequence_length=LENGTH, seed=0, world=2)
    with pytest.raises(ConfigError, match="sequence_length is 50000 but the corpus has 50,000"):
        BatchSampler(corpus.train, batch_size=5, sequence_length=50_000, seed=0)


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_heldout_split_is_read_once_in_order(corpus: Corpus, batch_size: int) -> None:
    batches = list(heldout_batches(corpus.heldout["val"], batch_size=batch_size, sequence_length=LENGTH))
    targets = torch.cat([targets for _, targets in batches]).flatten()
    whole = torch.from_numpy(np.array(corpus.heldout["val"]).astype(np.int64))
    assert torch.equal(targets, whole[1 : 1 + len(targets)])
    assert len(whole) - 1 - len(targets) < LENGTH
    assert all(torch.equal(tokens[:, 1:], following[:, :-1]) for tokens, following in batches)
    assert max(len(tokens) for tokens, _ in batches) <= batch_size


def test_nothing_is_copied_when_shards_are_opened(corpus: Corpus, tmp_path: Path) -> None:
    assert isinstance(corpus.train, np.memmap)
    assert not corpus.train.flags.writeable
