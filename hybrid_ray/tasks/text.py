"""Task: next-token prediction with GPT-2 on windows of a text corpus. Jobs configure it in ``model`` and ``data``."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hybrid_ray.config import DataConfig, ModelConfig, RunConfig, Split
from hybrid_ray.data import Corpus, prepare_text
from hybrid_ray.data.split import SPLITS
from hybrid_ray.models import GPT2, PRESETS, build_model, flops_per_token, generate
from hybrid_ray.models.gpt2 import build_gpt2
from hybrid_ray.tasks.sampling import Sampler
from hybrid_ray.tasks.task import MatmulProbe, Task

__all__ = ["TextTask", "Windows"]

TEMPERATURE = 0.8  # greedy decoding would repeat itself in such a small model
TOP_K = 40
SEED = 0  # the same in every run, so that samples differ only because of their models

Pair = tuple[Tensor, Tensor]


class Windows(Dataset[Pair]):
    """Windows of a text, one every ``stride`` tokens. An item is T tokens and their T targets."""

    def __init__(self, tokens: npt.NDArray[np.uint16], length: int, *, stride: int) -> None:
        self._tokens, self._length, self._stride = tokens, length, stride

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - 1 - self._length) // self._stride + 1)

    def __getitem__(self, item: int) -> Pair:
        first = item * self._stride
        window_T = torch.from_numpy(self._tokens[first : first + self._length + 1].astype(np.int64))
        return window_T[:-1], window_T[1:]


class TextTask(Task):
    """A batch is ``(tokens_BT, targets_BT)``.

    Args:
        corpus: the corpus if it is already loaded. None: it is prepared or read on first use.
    """

    unit = "token"
    measure = "nats"
    reads = frozenset({"model", "data", "train.sequence_length"})

    def __init__(
        self, *, model: ModelConfig, data: DataConfig, sequence_length: int, corpus: Corpus | None = None
    ) -> None:
        self.config, self.data, self.sequence_length = model, data, sequence_length
        if corpus is not None:
            self.corpus = corpus

    @classmethod
    def arguments(cls, run: RunConfig) -> dict[str, Any]:
        return {"model": run.model, "data": run.data, "sequence_length": run.train.sequence_length}

    @cached_property
    def corpus(self) -> Corpus:
        return prepare_text(self.data)

    @property
    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    def build_model(self) -> nn.Module:
        return build_model(self.config, vocab_size=self.corpus.classes, sequence_length=self.sequence_length)

    def datasets(self) -> Mapping[str, Dataset[Any]]:
        """The same windows that `sampler` and `stretches` read in batches."""
        corpus, length = self.corpus, self.sequence_length
        heldout: dict[str, Dataset[Any]] = {
            split: Windows(corpus.heldout[split], length, stride=length) for split in SPLITS
        }
        return {"train": Windows(corpus.train, length, stride=1), **heldout}

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        return cast(Tensor, model(*batch))

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Sampler:
        return self.corpus.sampler(
            batch_size=batch_size, sequence_length=self.sequence_length, seed=seed, rank=rank, world=world
        )

    def stretches(self, split: Split) -> Iterator[Pair]:
        return self.corpus.stretches(split, sequence_length=self.sequence_length)

    def written_sample(self, model: nn.Module, *, tokens: int) -> str | None:
        """Text that the model generates for the beginning of a file.

        Generation starts from the end-of-file token, so the model writes the whole text. None if the vocabulary has no
        such token.
        """
        end = self.corpus.vocabulary.end
        if end is None:
            return None
        written_BT = generate(
            cast(GPT2, model),
            torch.tensor([[end]]),
            new_tokens=tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            seed=SEED,
        )
        return self.corpus.decode(written_BT[0, 1:].tolist())

    @property
    def classes(self) -> int:
        return self.corpus.classes

    @property
    def depth(self) -> int:
        return PRESETS[self.config.preset].layers

    def build_shallow(self, blocks: int) -> nn.Module:
        return build_gpt2(
            self.config, vocab_size=self.corpus.classes, sequence_length=self.sequence_length, layers=blocks
        )

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return list(cast(GPT2, model).h)

    def matmul_probe(self) -> MatmulProbe:
        shape, length = PRESETS[self.config.preset], self.sequence_length
        flops = flops_per_token(shape, self.corpus.classes, length) * length
        return MatmulProbe(width=shape.width, rows=length, flops=flops)
