"""Tokens with no download: corpora, tokenizers, batches."""

from hybrid_ray.data.batches import BatchSampler, heldout_batches
from hybrid_ray.data.corpus import Corpus, prepare

__all__ = ["BatchSampler", "Corpus", "heldout_batches", "prepare"]
