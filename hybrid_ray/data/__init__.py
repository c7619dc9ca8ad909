"""Data sets that need no download: text corpora, tokenizers and rendered digits, with samplers for both."""

from hybrid_ray.data.batches import BatchSampler, heldout_batches
from hybrid_ray.data.corpus import Corpus, prepare_text

__all__ = ["BatchSampler", "Corpus", "heldout_batches", "prepare_text"]
