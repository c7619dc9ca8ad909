"""Text to tokens: bytes, or a byte-level BPE trained here on the corpus itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ByteTokenizer", "Tokenizer"]

END_OF_FILE = 256  # of the byte vocabulary


class Tokenizer(Protocol):
    """``encode`` appends the token that ends a file; ``decode`` shows it as a blank line."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: bytes) -> npt.NDArray[np.uint16]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def save(self, directory: Path) -> None: ...


class ByteTokenizer:
    """256 bytes and the end of a file."""

    vocab_size = END_OF_FILE + 1

    def encode(self, text: bytes) -> npt.NDArray[np.uint16]:
        tokens = np.empty(len(text) + 1, dtype=np.uint16)
        tokens[:-1] = np.frombuffer(text, dtype=np.uint8)
        tokens[-1] = END_OF_FILE
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        pieces = (b"\n\n" if token == END_OF_FILE else bytes((token,)) for token in tokens)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, directory: Path) -> None:
        """Nothing to save: every byte tokenizer is the same."""
