"""Text prepared for training: memory-mapped tokens, cached under a hash of everything that determines them."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from torch import Tensor

from hybrid_ray.config import DataConfig, Split
from hybrid_ray.data.batches import BatchSampler, heldout_batches
from hybrid_ray.data.cache import cache_root, cached_directory, is_whole, remember, remembered
from hybrid_ray.data.sources import SHIPPED, Document, SourceFile, list_files, read_documents
from hybrid_ray.data.split import SPLITS, STRETCHES, hold_out, never_held_out
from hybrid_ray.data.tokenizer import BPETokenizer, ByteTokenizer, NumberVocabulary, Tokenizer, Vocabulary, train_bpe
from hybrid_ray.errors import ConfigError

__all__ = ["Corpus", "prepare_text", "quick_to_prepare"]

FORMAT = 3  # version of the cached directory; if it changes, every corpus is rebuilt
GPT2_VOCABULARY = 50_257
RANDOM_TOKENS = 4_000_000  # size of the random corpus if max_bytes is not set
TOGETHER = 256  # files encoded at a time: enough to use all cores, few enough to fit in memory
LARGEST_BATCH = 16_384  # tokens; a larger batch needs more memory and is not faster
LARGEST_LOGITS = 2**26  # elements; with a large vocabulary, evaluation would otherwise set the memory peak
TOKEN = np.dtype(np.uint16)
Tokens = np.memmap[tuple[int], np.dtype[np.uint16]]

log = logging.getLogger("hybrid_ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Tokens (1-D, uint16) of the training text and of each held-out split.

    ``fingerprint`` is a hash of everything that determines them. ``heldout_starts`` says where each file's slice begins
    in a held-out split: losses within a file are correlated, so a standard error must be computed over files, not
    tokens.
    """

    fingerprint: str
    vocabulary: Vocabulary
    train: Tokens
    heldout: dict[Split, Tokens]
    heldout_starts: dict[Split, tuple[int, ...]]

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.vocab_size

    @property
    def classes(self) -> int:
        """Number of values that a target can take: the vocabulary size."""
        return self.vocab_size

    def decode(self, tokens: Sequence[int]) -> str:
        return self.vocabulary.decode(tokens)

    def sampler(
        self, *, batch_size: int, sequence_length: int, seed: int, rank: int = 0, world: int = 1
    ) -> BatchSampler:
        """Random windows of the training text."""
        return BatchSampler(
            self.train, batch_size=batch_size, sequence_length=sequence_length, seed=seed, rank=rank, world=world
        )

    def stretches(self, split: Split, *, sequence_length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a split as about 32 batches of consecutive text, or more if these batches would be too large."""
        rows = len(self.heldout[split]) // sequence_length
        largest = min(LARGEST_BATCH, LARGEST_LOGITS // self.classes)
        batch = max(1, min(rows // STRETCHES, largest // sequence_length))
        return heldout_batches(self.heldout[split], batch_size=batch, sequence_length=sequence_length)


def prepare_text(config: DataConfig) -> Corpus:
    """The corpus of ``config``. The first call builds it; later calls, from any process, read it from the cache.

    The cache is keyed by content: if the files change, a new entry is made and the old one stays. If no file's name,
    size or modification time has changed since the last call, the text is not read again. Files of a user's folder that
    are skipped are logged only when the text is read, so not by every run of a study.

    Raises:
        ConfigError: the folder is missing or is not a folder, or it contains too little text.
    """
    root = cache_root(config.cache_dir)
    if config.corpus == "random":
        name = _name(config, [b"random", str(config.max_bytes).encode()])
        return _load(cached_directory(root, name, lambda directory: _write_random(directory, config)), config)
    files, no_files = list_files(config.corpus)
    look = _look(config, files)
    known = remembered(root, look)
    if known and is_whole(root / known):
        return _load(root / known, config)
    documents, no_texts = read_documents(files, max_bytes=config.max_bytes)
    left_out = ", ".join(f"{count} x {cause}" for cause, count in sorted((no_files + no_texts).items()))
    if not documents:
        raise ConfigError(
            f"data.corpus is {config.corpus!r} but no file in it can be used as text "
            f"({left_out or 'the folder is empty'}): give a folder of UTF-8 text files"
        )
    if left_out and config.corpus not in SHIPPED:
        log.warning("data.corpus %r: %d files are read; left out: %s", config.corpus, len(documents), left_out)
    name = _name(config, [document.digest for document in documents])
    directory = cached_directory(root, name, lambda directory: _write(directory, config, documents))
    remember(root, look, name)
    return _load(directory, config)


def quick_to_prepare(config: DataConfig) -> DataConfig:
    """The corpus itself, or random tokens of the same vocabulary if a BPE would have to be trained on it first.

    Training a BPE and encoding a large corpus takes many minutes. A plan needs only the sizes of the batches.

    Raises:
        ConfigError: the folder is missing or is not a folder.
    """
    if config.tokenizer == "bytes" or config.corpus == "random":
        return config
    root, (files, _) = cache_root(config.cache_dir), list_files(config.corpus)
    known = remembered(root, _look(config, files))
    return config if known and is_whole(root / known) else replace(config, corpus="random", max_bytes=None)


def _look(config: DataConfig, files: Iterable[SourceFile]) -> str:
    """The key of a corpus before its text is read."""
    return _name(config, [str(config.max_bytes).encode(), *(file.stamp for file in files)])


def _name(config: DataConfig, parts: Iterable[bytes]) -> str:
    digest = sha256(repr((FORMAT, config.tokenizer, config.vocab_size, config.heldout_tokens)).encode())
    for part in parts:
        digest.update(part)
    return f"corpus-{digest.hexdigest()}"


def _write(directory: Path, config: DataConfig, documents: Sequence[Document]) -> None:
    if config.tokenizer == "bpe":
        texts = (document.text for document in never_held_out(documents))
        train_bpe(texts, config.vocab_size or GPT2_VOCABULARY, directory)
    tokenizer = _tokenizer(directory, config)
    heldout, rest = hold_out(documents, tokenizer, config.heldout_tokens)
    total = 0
    with (directory / "train.bin").open("wb") as file:
        for first in range(0, len(rest), TOGETHER):
            for tokens in tokenizer.encode([document.text for document in rest[first : first + TOGETHER]]):
                file.write(tokens.data)
                total += len(tokens)
    if total < config.heldout_tokens:
        raise ConfigError(
            f"data.corpus {config.corpus!r} leaves {total:,} tokens for training but needs at least as many as a "
            f"held-out split ({config.heldout_tokens:,}): give more text or lower data.heldout_tokens"
        )
    for split, part in heldout.items():
        part.tokens.tofile(directory / f"{split}.bin")
    described = {split: {"starts": part.starts} for split, part in heldout.items()}
    (directory / "heldout.json").write_text(json.dumps(described))


def _write_random(directory: Path, config: DataConfig) -> None:
    """Write uniformly random tokens, which have no structure to learn, for training and the held-out splits.

    A training token takes 2 bytes of ``max_bytes``; the held-out splits do not count.
    """
    vocabulary = _random_vocabulary(config).vocab_size
    draw = np.random.default_rng(0)
    train = config.max_bytes // TOKEN.itemsize if config.max_bytes else RANDOM_TOKENS
    for name in ("train", *SPLITS):
        size = train if name == "train" else config.heldout_tokens
        draw.integers(0, vocabulary, size, dtype=TOKEN).tofile(directory / f"{name}.bin")
    described = {split: {"starts": [0]} for split in SPLITS}
    (directory / "heldout.json").write_text(json.dumps(described))


def _random_vocabulary(config: DataConfig) -> NumberVocabulary:
    usual = ByteTokenizer.vocab_size if config.tokenizer == "bytes" else GPT2_VOCABULARY
    return NumberVocabulary(config.vocab_size or usual)


def _tokenizer(directory: Path, config: DataConfig) -> Tokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    return BPETokenizer(directory)


def _load(directory: Path, config: DataConfig) -> Corpus:
    described = json.loads((directory / "heldout.json").read_text())
    return Corpus(
        fingerprint=directory.name.removeprefix("corpus-"),
        vocabulary=_random_vocabulary(config) if config.corpus == "random" else _tokenizer(directory, config),
        train=_tokens(directory, "train"),
        heldout={split: _tokens(directory, split) for split in SPLITS},
        heldout_starts={split: tuple(described[split]["starts"]) for split in SPLITS},
    )


def _tokens(directory: Path, name: str) -> Tokens:
    return np.memmap(directory / f"{name}.bin", dtype=TOKEN, mode="r")
