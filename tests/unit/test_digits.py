"""Rendered digits and the small CNN: the same everywhere, balanced, and learnable as MNIST is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid_ray.config import TrainConfig
from hybrid_ray.data import digits as module
from hybrid_ray.data.digits import Digits, DigitSampler, heldout_digits, prepare_digits
from hybrid_ray.data.split import SPLITS
from hybrid_ray.models import count_parameters
from hybrid_ray.models.cnn import CNN
from hybrid_ray.optim import build_optimizer, build_schedule


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return prepare_digits(str(tmp_path_factory.mktemp("digits")))


def test_splits_are_balanced_and_share_no_image(digits: Digits) -> None:
    assert {part: len(labels) for part, labels in digits.labels.items()} == {
        "train": 30_000,
        **dict.fromkeys(SPLITS, 5_000),
    }
    images = {part: {image.tobytes() for image in digits.images[part]} for part in digits.images}
    assert sum(map(len, images.values())) == len(set.union(*images.values())) == 45_000
    for labels in digits.labels.values():
        assert np.bincount(labels, minlength=10).min() > 0.08 * len(labels)


def test_rendering_is_repeatable(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = prepare_digits(str(tmp_path_factory.mktemp("again")))
    assert np.array_equal(again.images["test"], digits.images["test"])
    assert np.array_equal(again.labels["test"], digits.labels["test"])
    assert again.fingerprint == digits.fingerprint


def test_other_pictures_have_another_fingerprint(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another Pillow would draw them."""
    drawn = module._glyphs
    monkeypatch.setattr(module, "_glyphs", lambda: drawn() * 0.99)
    assert prepare_digits(str(tmp_path)).fingerprint != digits.fingerprint


def test_ranks_share_one_stream_and_a_held_out_split_is_read_once(digits: Digits) -> None:
    whole = DigitSampler(digits, batch_size=8, seed=1).next()
    halves = [DigitSampler(digits, batch_size=8, seed=1, rank=rank, world=2).next() for rank in range(2)]
    assert torch.equal(torch.cat([images for images, _ in halves]), whole[0])
    assert whole[0].shape == (8, 1, 28, 28)
    read = torch.cat([labels for _, labels in heldout_digits(digits, "decide", batch_size=999)])
    assert np.array_equal(read.numpy(), digits.labels["decide"])


def test_cnn_learns_them(digits: Digits) -> None:
    torch.manual_seed(0)
    model = CNN()
    assert count_parameters(model) == 49_022
    config = TrainConfig(steps=200, learning_rate=5e-3)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config)
    sampler = DigitSampler(digits, batch_size=64, seed=0)
    images, labels = next(heldout_digits(digits, "val", batch_size=1000))
    assert model(images, labels).item() == pytest.approx(2.3026, abs=0.05)
    for _ in range(config.steps):
        model(*sampler.next()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    loss, accuracy = model.loss_and_accuracy(images, labels)
    assert accuracy > 0.8
    assert model(images, labels).item() == loss.item() < 0.6
