"""Data with no download: text corpora, tokenizers, rendered digits, batches of either."""

from hybrid_ray.data.batches import BatchSampler, heldout_batches
from hybrid_ray.data.corpus import Corpus
from hybrid_ray.data.dataset import Dataset, Sampler, prepare

__all__ = ["BatchSampler", "Corpus", "Dataset", "Sampler", "heldout_batches", "prepare"]
