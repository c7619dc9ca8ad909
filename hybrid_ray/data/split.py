"""Selects the files to hold out. No held-out text comes from a file that is used for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from hybrid_ray.config import Split
from hybrid_ray.data.sources import Document
from hybrid_ray.data.tokenizer import Tokenizer
from hybrid_ray.errors import ConfigError

__all__ = ["SPLITS", "STRETCHES", "HeldoutSplit", "hold_out", "never_held_out"]

SPLITS: tuple[Split, ...] = get_args(Split)
STRETCHES = 32  # batches of one pass over a held-out split
SLICE_TOKENS = 512  # about this many tokens per held-out file, so that a split mixes many files
MOST_FILES = 256  # files per split
MOST_SHARE = 0.2  # share of all files held out in the three splits together, unless the files are too short
HELDOUT_MOST = 0.4  # upper bound on that share, even if all files are short


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldoutSplit:
    """The tokens of one split: one slice per file, concatenated; slice i begins at ``starts[i]``."""

    tokens: npt.NDArray[np.uint16]
    starts: tuple[int, ...]


def hold_out(
    documents: Sequence[Document], tokenizer: Tokenizer, heldout_tokens: int
) -> tuple[dict[Split, HeldoutSplit], Sequence[Document]]:
    """The three held-out splits, each of exactly ``heldout_tokens`` tokens, and the documents left for training.

    Documents are ordered by hash; the first ones are assigned to the splits in turn. Token losses within a file are
    correlated, so the standard error of a split falls with its number of files. A file therefore contributes only a
    slice, whose position its hash decides, and the slices are just long enough to fill the split. If the first files
    are too short, more are taken, but never one that a tokenizer may learn from (``never_held_out``).

    ``benchmarks/heldout_error.py`` measures the result. On the standard library (65,536 tokens from 115 files), the
    standard error over files is about 1.5 % of a loss; that of the loss difference of two runs is about 0.2 %.

    Raises:
        ConfigError: there is too little text for the three splits.
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
    """The documents that are never held out, whatever the size of the splits."""
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
    used = int(np.searchsorted(lengths, heldout_tokens))  # the last files may not be needed
    return HeldoutSplit(
        tokens=np.concatenate(pieces)[:heldout_tokens],
        starts=tuple(map(int, lengths[:used])),
    )


def _shortest_slice(lengths: Sequence[int], total: int) -> int:
    """The smallest n for which the sum of min(length, n) reaches ``total``."""
    left, files = total, len(lengths)
    for length in sorted(lengths):
        if length * files >= left:
            return -(-left // files)
        left -= length
        files -= 1
    raise AssertionError("the caller checked that the lengths add up")
