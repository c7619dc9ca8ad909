"""Which files are held out. Whole files: no held-out text comes from a file that training sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from hybrid_ray.config import Split
from hybrid_ray.data.sources import Document
from hybrid_ray.data.tokenizer import Tokenizer
from hybrid_ray.errors import ConfigError

__all__ = ["SPLITS", "HeldoutSplit", "hold_out", "never_held_out"]

SPLITS: tuple[Split, ...] = get_args(Split)
SLICE_TOKENS = 512  # a held-out file gives about this many tokens, so that many files are mixed in a split
MOST_FILES = 256  # of one split
MOST_SHARE = 0.2  # of all files, in the three splits together, unless they are too short
HELDOUT_MOST = 0.4  # the same, however short they are


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldoutSplit:
    """The tokens of one split: a slice of each of its files, one after another, beginning at ``starts``."""

    tokens: npt.NDArray[np.uint16]
    starts: tuple[int, ...]
    names: tuple[str, ...]


def hold_out(
    documents: Sequence[Document], tokenizer: Tokenizer, heldout_tokens: int
) -> tuple[dict[Split, HeldoutSplit], Sequence[Document]]:
    """The three held-out splits, each of exactly ``heldout_tokens`` tokens, and the documents left for training.

    Documents come in the order of their hashes; the first go to the splits in turn. Losses of tokens in one file are
    alike, so a split's standard error falls with its number of files: a file gives only a slice, taken at a place that
    its hash decides, and the slices are as short as fills the split. More files are taken where the first are too
    short, though never one that a tokenizer may learn from (``never_held_out``).

    What that gives is measured by ``benchmarks/heldout_error.py``. On the standard library, 65,536 tokens of 115 files:
    the standard error by file of a loss alone is about 1.5 % of it, of the difference of two runs about 0.2 %.

    Raises:
        ConfigError: too little text for the splits and as much again for training.
    """
    wanted = min(MOST_FILES, heldout_tokens // SLICE_TOKENS, int(MOST_SHARE * len(documents)) // len(SPLITS))
    members = max(1, wanted)
    encoded: list[npt.NDArray[np.uint16]] = []
    available = len(documents) - len(never_held_out(documents))
    while members * len(SPLITS) <= available:
        count = members * len(SPLITS)
        encoded += tokenizer.encode([document.text for document in documents[len(encoded) : count]])
        shares = [encoded[place :: len(SPLITS)] for place in range(len(SPLITS))]
        if all(sum(map(len, share)) >= heldout_tokens for share in shares):
            splits = {
                split: _slices(documents[place : count : len(SPLITS)], share, heldout_tokens)
                for place, (split, share) in enumerate(zip(SPLITS, shares, strict=True))
            }
            return splits, documents[count:]
        members += 1
    size = sum(len(document.text) for document in documents)
    raise ConfigError(
        f"the corpus has {size:,} bytes in {len(documents)} files but three held-out splits of {heldout_tokens:,} "
        f"tokens, each of files of its own, in at most {HELDOUT_MOST:.0%} of the files need more: give more text, "
        "in more files, or lower data.heldout_tokens"
    )


def never_held_out(documents: Sequence[Document]) -> Sequence[Document]:
    """The documents that no split can take, whatever its size."""
    return documents[int(HELDOUT_MOST * len(documents)) :]


def _slices(
    documents: Sequence[Document], encoded: Sequence[npt.NDArray[np.uint16]], heldout_tokens: int
) -> HeldoutSplit:
    length = _shortest_slice([len(tokens) for tokens in encoded], heldout_tokens)
    pieces = []
    for document, tokens in zip(documents, encoded, strict=True):
        room = max(0, len(tokens) - length)
        start = int.from_bytes(document.digest[:8], "big") % (room + 1)
        pieces.append(tokens[start : start + length])
    lengths = np.cumsum([0, *map(len, pieces)])
    used = int(np.searchsorted(lengths, heldout_tokens))  # the last of them may not be needed
    return HeldoutSplit(
        tokens=np.concatenate(pieces)[:heldout_tokens],
        starts=tuple(map(int, lengths[:used])),
        names=tuple(document.name for document in documents[:used]),
    )


def _shortest_slice(lengths: Sequence[int], total: int) -> int:
    """The smallest n for which the lengths, none counted above n, add up to ``total``."""
    left, files = total, len(lengths)
    for length in sorted(lengths):
        if length * files >= left:
            return -(-left // files)
        left -= length
        files -= 1
    raise AssertionError("the caller checked that the lengths add up")
