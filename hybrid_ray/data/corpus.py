"""Text prepared for training: memory-mapped tokens, cached under a hash of everything that makes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from hybrid_ray.config import DataConfig, Split
from hybrid_ray.data.cache import cache_root, cached_directory
from hybrid_ray.data.sources import Document, read_documents
from hybrid_ray.data.split import SPLITS, HeldoutSplit, hold_out
from hybrid_ray.data.tokenizer import ByteTokenizer, Tokenizer
from hybrid_ray.errors import ConfigError

__all__ = ["Corpus", "prepare"]

FORMAT = 1  # of the cached directory: a change makes every corpus anew
RANDOM_TOKENS = 4_000_000  # of the random corpus, unless max_bytes says otherwise
TOKEN_BYTES = np.dtype(np.uint16).itemsize
Tokens = np.memmap[tuple[int], np.dtype[np.uint16]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Tokens (1-D, uint16) of training and of each held-out split. ``fingerprint`` is a hash of them all.

    ``heldout_starts`` says where each file's slice begins in a held-out split: losses are alike within a file, so an
    error bar should count files, not tokens.
    """

    fingerprint: str
    tokenizer: Tokenizer
    train: Tokens
    heldout: dict[Split, Tokens]
    heldout_starts: dict[Split, tuple[int, ...]]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)


def prepare(config: DataConfig) -> Corpus:
    """The corpus of ``config``, made on the first call and read from the cache after that, by any number of processes.

    The cache is keyed by content: other files in the corpus make another entry, and the old one stays.

    Raises:
        ConfigError: the folder is missing, or there is too little text in it.
    """
    root = cache_root(config.cache_dir)
    if config.corpus == "random":
        tokens = config.max_bytes or RANDOM_TOKENS
        key = _key(config, [b"random", str(tokens).encode()])
        return _load(cached_directory(root, key, lambda directory: _write_random(directory, config, tokens)))
    documents = read_documents(config.corpus, max_bytes=config.max_bytes)
    key = _key(config, [document.digest for document in documents])
    return _load(cached_directory(root, key, lambda directory: _write(directory, config, documents)))


def _key(config: DataConfig, parts: Sequence[bytes]) -> str:
    settings = (FORMAT, config.tokenizer, config.vocab_size, config.heldout_tokens)
    digest = sha256(repr(settings).encode())
    for part in parts:
        digest.update(part)
    return f"corpus-{digest.hexdigest()[:24]}"


def _write(directory: Path, config: DataConfig, documents: Sequence[Document]) -> None:
    tokenizer = ByteTokenizer()
    heldout, rest = hold_out(documents, tokenizer, config.heldout_tokens)
    with (directory / "train.bin").open("wb") as file:
        total = sum(file.write(tokenizer.encode(document.text).data) for document in rest) // TOKEN_BYTES
    if total < config.heldout_tokens:
        raise ConfigError(
            f"data.corpus {config.corpus!r} leaves {total:,} tokens for training but needs at least as many as a "
            f"held-out split ({config.heldout_tokens:,}): give more text or lower data.heldout_tokens"
        )
    _write_heldout(directory, heldout)


def _write_heldout(directory: Path, heldout: dict[Split, HeldoutSplit]) -> None:
    for split, part in heldout.items():
        part.tokens.tofile(directory / f"{split}.bin")
    described = {split: {"starts": part.starts, "paths": part.paths} for split, part in heldout.items()}
    (directory / "heldout.json").write_text(json.dumps(described))


def _write_random(directory: Path, config: DataConfig, tokens: int) -> None:
    draw = np.random.default_rng(0)
    for name in ("train", *SPLITS):
        size = tokens if name == "train" else config.heldout_tokens
        draw.integers(0, ByteTokenizer.vocab_size, size, dtype=np.uint16).tofile(directory / f"{name}.bin")
    starts = {split: {"starts": [0], "paths": ["random"]} for split in SPLITS}
    (directory / "heldout.json").write_text(json.dumps(starts))


def _load(directory: Path) -> Corpus:
    described = json.loads((directory / "heldout.json").read_text())
    return Corpus(
        fingerprint=directory.name.removeprefix("corpus-"),
        tokenizer=ByteTokenizer(),
        train=_tokens(directory, "train"),
        heldout={split: _tokens(directory, split) for split in SPLITS},
        heldout_starts={split: tuple(described[split]["starts"]) for split in SPLITS},
    )


def _tokens(directory: Path, name: str) -> Tokens:
    return np.memmap(directory / f"{name}.bin", dtype=np.uint16, mode="r")
