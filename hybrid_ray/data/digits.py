"""Digits as hard to classify as MNIST's, rendered locally from matplotlib's fonts: no download.

Every image is one glyph of one font, randomly rotated, scaled, sheared and bent, with random contrast and noise. All
parts use the same fonts, so the held-out parts have new images but no new fonts.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_ray.config import Split
from hybrid_ray.data.cache import cache_root, cached_directory
from hybrid_ray.data.split import SPLITS, STRETCHES
from hybrid_ray.data.stream import SharedStream, StreamSampler

__all__ = ["DigitSampler", "Digits", "heldout_digits", "prepare_digits"]

SIDE = 28  # pixels, as in MNIST
DRAWN = 40  # side of a glyph in pixels, before it is bent
FORMAT = 3  # version of the rendering; if it changes, all images are rendered again
TRAIN_IMAGES = 30_000
HELDOUT_IMAGES = 5_000  # of each split
TOGETHER = 2_000  # images bent at a time
FONTS = (
    *(f"DejaVu{name}" for name in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold")),
    *(f"DejaVu{name}" for name in ("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")),
    *(f"STIXGeneral{name}" for name in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmss10", "cmtt10", "cmb10", "cmti10"),
)
Images = np.memmap[tuple[int, int, int], np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Digits:
    """Images (N x 28 x 28, uint8) and labels (N, uint8) of the training part (``train``) and of each held-out split."""

    fingerprint: str
    images: dict[str, Images]
    labels: dict[str, npt.NDArray[np.uint8]]

    @property
    def classes(self) -> int:
        return 10

    def some(self, part: str, order: npt.ArrayLike) -> tuple[Tensor, Tensor]:
        """Images B1HW (fp32, mean about 0) and labels B (int64) at the indices ``order`` of a part."""
        return _pair(self, part, np.asarray(order))

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> "DigitSampler":
        """A sampler of random training images."""
        return DigitSampler(self, batch_size=batch_size, seed=seed, rank=rank, world=world)

    def stretches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a split as about 32 batches."""
        return heldout_digits(self, split, batch_size=max(1, len(self.labels[split]) // STRETCHES))


def prepare_digits(cache_dir: str | None = None) -> Digits:
    """The digits. The first call renders them (a few seconds); later calls, from any process, read them from the cache.

    ``cache_dir`` is as in ``DataConfig``. The images depend on this file, on matplotlib's fonts and on how Pillow draws
    them, so the fingerprint is a hash of the images and labels themselves.
    """
    settings = (FORMAT, SIDE, DRAWN, TRAIN_IMAGES, HELDOUT_IMAGES, FONTS)
    name = f"digits-{sha256(repr(settings).encode()).hexdigest()}"
    directory = cached_directory(cache_root(cache_dir), name, _write)
    counts: dict[str, int] = json.loads((directory / "counts.json").read_text())
    return Digits(
        fingerprint=(directory / "fingerprint").read_text(),
        images={
            part: np.memmap(directory / f"{part}.images.bin", dtype=np.uint8, mode="r", shape=(count, SIDE, SIDE))
            for part, count in counts.items()
        },
        labels={part: np.fromfile(directory / f"{part}.labels.bin", dtype=np.uint8) for part in counts},
    )


def _write(directory: Path) -> None:
    glyphs = _glyphs()
    counts = {part: TRAIN_IMAGES if part == "train" else HELDOUT_IMAGES for part in ("train", *SPLITS)}
    for seed, (part, count) in enumerate(counts.items()):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(10, (count,), generator=draw)
        labels.numpy().astype(np.uint8).tofile(directory / f"{part}.labels.bin")
        with (directory / f"{part}.images.bin").open("wb") as file:
            for first in range(0, count, TOGETHER):
                some = labels[first : first + TOGETHER]
                fonts = torch.randint(len(glyphs), (len(some),), generator=draw)
                file.write(_bend(glyphs[fonts, some], draw).numpy().data)
    (directory / "counts.json").write_text(json.dumps(counts))
    content = sha256()
    for path in sorted(directory.glob("*.bin")):
        content.update(path.name.encode() + path.read_bytes())
    (directory / "fingerprint").write_text(content.hexdigest())


def _glyphs() -> Tensor:
    """The ten digits of every font, centred, with values in [0, 1]: fonts x 10 x DRAWN x DRAWN."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pages = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), size=DRAWN * 3 // 4)
        for digit in "0123456789":
            page = Image.new("L", (DRAWN, DRAWN))
            ImageDraw.Draw(page).text((DRAWN / 2, DRAWN / 2), digit, fill=255, font=font, anchor="mm")
            pages.append(np.asarray(page))
    return torch.from_numpy(np.stack(pages)).float().div(255).view(len(FONTS), 10, DRAWN, DRAWN)


def _bend(glyphs_BHW: Tensor, draw: torch.Generator) -> Tensor:
    """Apply a random affine map, a smooth random bend and noise to each glyph. Returns B x SIDE x SIDE, uint8."""
    count = len(glyphs_BHW)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw)

    angle, shear = uniform(-0.35, 0.35), uniform(-0.3, 0.3)
    across, down = uniform(0.7, 1.1), uniform(0.7, 1.0)
    cos, sin = angle.cos(), angle.sin()
    rows = [across * cos, across * (shear * cos - sin), uniform(-0.15, 0.15), down * sin, down * (shear * sin + cos)]
    affine = torch.stack([*rows, uniform(-0.15, 0.15)], dim=1).view(count, 2, 3)
    grid_BHW2 = F.affine_grid(affine, [count, 1, SIDE, SIDE], align_corners=False)
    bends = F.interpolate(uniform(-0.1, 0.1, 2, 4, 4), size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    bent_B1HW = F.grid_sample(glyphs_BHW[:, None], grid_BHW2 + bends.permute(0, 2, 3, 1), align_corners=False)
    strength, floor = uniform(0.6, 1.0, 1, 1), uniform(0.0, 0.1, 1, 1)
    noise = 0.08 * torch.randn(count, SIDE, SIDE, generator=draw)
    return (floor + (strength - floor) * bent_B1HW[:, 0] + noise).clamp(0, 1).mul(255).round().to(torch.uint8)


class DigitSampler(StreamSampler):
    """Draws random training images in the order of a ``SharedStream``. Has the interface of ``BatchSampler``."""

    def __init__(self, digits: Digits, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.digits = digits
        places = len(digits.labels["train"])
        self.stream = SharedStream(places=places, batch_size=batch_size, seed=seed, rank=rank, world=world)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return this rank's images_B1HW (fp32, mean about 0) and labels_B (int64) and advance by one batch."""
        return _pair(self.digits, "train", self.stream.next())


def heldout_digits(digits: Digits, split: Split, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a split once, in order. The last batch may be smaller."""
    order = np.arange(len(digits.labels[split]))
    for first in range(0, len(order), batch_size):
        yield _pair(digits, split, order[first : first + batch_size])


def _pair(digits: Digits, part: str, order: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    images_BHW = torch.from_numpy(digits.images[part][order]).float().div(255).sub(0.3)
    return images_BHW[:, None], torch.from_numpy(digits.labels[part][order]).long()
