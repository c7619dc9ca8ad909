"""A few tokens from a trained language model: what a reader sees of a run beside its losses."""

import torch

from hybrid_ray.data import Corpus
from hybrid_ray.method.ranks import rank
from hybrid_ray.models import GPT2, generate
from hybrid_ray.training.setup import TrainSetup

__all__ = ["sample"]

TEMPERATURE = 0.8  # the likeliest token each time would go round in circles in a model as small as ours
TOP_K = 40
SEED = 0  # the same draws in every run, so that two samples differ by their models alone


def sample(setup: TrainSetup) -> str | None:
    """The beginning of a file as the model writes it, ``train.sample_tokens`` tokens; rank 0's, None elsewhere.

    It starts from the token that ends a file, so all of the text is the model's own. It draws from a generator of its
    own and leaves no trace in the run. None too where there is nothing to read: a model of pictures, tokens that stand
    for nothing, a model of which each rank has only a part (its forward would need every rank, a token at a time).
    """
    corpus, model, tokens = setup.corpus, setup.module, setup.run.train.sample_tokens
    wanted = tokens > 0 and setup.run.arm in ("baseline", "hybrid") and rank() == 0 and not setup.sharded
    if not wanted or not isinstance(model, GPT2) or not isinstance(corpus, Corpus) or corpus.vocabulary.end is None:
        return None
    start_BT = torch.tensor([[corpus.vocabulary.end]])
    with setup.precision():
        written_BT = generate(model, start_BT, new_tokens=tokens, temperature=TEMPERATURE, top_k=TOP_K, seed=SEED)
    return corpus.decode(written_BT[0, 1:].tolist())
