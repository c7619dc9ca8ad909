"""Tokenizers: bytes, or a byte-level BPE that is trained on the corpus itself."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["BPETokenizer", "ByteTokenizer", "NumberVocabulary", "Tokenizer", "Vocabulary", "train_bpe"]

END_OF_FILE = 256  # token of the byte vocabulary
END_OF_TEXT = "<|endoftext|>"  # token of the BPE vocabulary: GPT-2's name for it; here the first entry
BPE_FILE = "tokenizer.json"
BPE_TRAINING_BYTES = 20_000_000
LONGEST_WORD = 2048  # bytes; no word of Python's library or of the usual packages is as long, so none is cut


class Vocabulary(Protocol):
    """The number of tokens and their text. ``end`` is the end-of-file token, or None if there is none."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end(self) -> int | None: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class Tokenizer(Vocabulary, Protocol):
    """``encode`` appends the end-of-file token to each text; ``decode`` shows that token as a blank line."""

    def encode(self, texts: Sequence[bytes]) -> list[npt.NDArray[np.uint16]]: ...


class NumberVocabulary:
    """Tokens without a meaning, for the random corpus; decoded as numbers."""

    end = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(int(token)) for token in tokens)


class ByteTokenizer:
    """One token per byte value (256), and an end-of-file token."""

    vocab_size = END_OF_FILE + 1
    end = END_OF_FILE

    def encode(self, texts: Sequence[bytes]) -> list[npt.NDArray[np.uint16]]:
        end = np.array([END_OF_FILE], dtype=np.uint16)
        return [np.concatenate([np.frombuffer(text, dtype=np.uint8), end]) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        pieces = (b"\n\n" if token == END_OF_FILE else bytes((token,)) for token in tokens)
        return b"".join(pieces).decode("utf-8", errors="replace")


class BPETokenizer:
    """A byte-level BPE with GPT-2's pre-tokenizer, read from the file that ``train_bpe`` wrote.

    If a file contains the end-of-text marker, the marker is encoded as ordinary text.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer as Trained

        self.trained: Any = Trained.from_file(str(directory / BPE_FILE))
        self.trained.encode_special_tokens = True
        self.end = 0  # the first of the trainer's special tokens

    @property
    def vocab_size(self) -> int:
        size: int = self.trained.get_vocab_size()
        return size

    def encode(self, texts: Sequence[bytes]) -> list[npt.NDArray[np.uint16]]:
        """Encode the texts in parallel on all cores."""
        encodings = self.trained.encode_batch_fast([text.decode("utf-8") for text in texts])
        return [np.array([*encoding.ids, self.end], dtype=np.uint16) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        pieces: list[list[int]] = [[]]
        for token in map(int, tokens):
            if token == self.end:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return "\n\n".join(map(self.trained.decode, pieces))


def train_bpe(texts: Iterable[bytes], vocab_size: int, directory: Path) -> None:
    """Learn at most ``vocab_size`` entries (fewer if no further pair occurs twice) and save them.

    Deterministic: the same texts in the same order give the same file. Only the first ``BPE_TRAINING_BYTES`` are used:
    learning 50257 entries takes about 10 s on two cores, and more text hardly changes them.

    A word is cut after ``LONGEST_WORD`` bytes: the time to learn from a word grows with the square of its length, so
    one line of a megabyte without a space would take minutes.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    bpe = Trained(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)  # maps each byte to one character, never to a line break
    pieces = pre_tokenizers.Split(Regex(f".{{{LONGEST_WORD}}}"), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(_first(texts, BPE_TRAINING_BYTES), trainer)
    bpe.save(str(directory / BPE_FILE))


def _first(texts: Iterable[bytes], most: int) -> Iterator[str]:
    read = 0
    for text in texts:
        if read >= most:
            return
        read += len(text)
        yield text.decode("utf-8")
