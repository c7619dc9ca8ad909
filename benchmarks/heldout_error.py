"""Standard error of the loss on a held-out split, by token and by file.

    python benchmarks/heldout_error.py [--steps 600]

Losses of tokens in the same file are correlated, so for a single loss the error by file (one file is one draw) is the
correct one. Two runs see the same files, so their difference has a much smaller error, and a score uses the difference.
About a minute on one core.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from hybrid_ray.config import DataConfig, ModelConfig, TrainConfig
from hybrid_ray.data import BatchSampler, Corpus, heldout_batches, prepare_text
from hybrid_ray.models import GPT2, build_model
from hybrid_ray.optim import build_optimizer, build_schedule

TOLERANCE = 0.02  # of ObjectiveConfig


def trained(corpus: Corpus, config: TrainConfig) -> GPT2:
    torch.manual_seed(0)
    model = build_model(ModelConfig(), vocab_size=corpus.vocab_size, sequence_length=config.sequence_length)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config)
    sampler = BatchSampler(corpus.train, batch_size=config.batch_size, sequence_length=config.sequence_length, seed=0)
    for _ in range(config.steps):
        optimizer.zero_grad()
        model(*sampler.next()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def token_losses(model: GPT2, corpus: Corpus, length: int) -> np.ndarray:
    losses = [
        F.cross_entropy(model.logits(tokens).flatten(0, 1), targets.flatten(), reduction="none")
        for tokens, targets in heldout_batches(corpus.heldout["val"], batch_size=64, sequence_length=length)
    ]
    return torch.cat(losses).numpy()


def report(name: str, values: np.ndarray, starts: tuple[int, ...], scale: float) -> None:
    files = np.searchsorted(np.array(starts), np.arange(1, len(values) + 1), side="right") - 1
    sums = np.bincount(files, values - values.mean())
    by_token, by_file = values.std() / len(values) ** 0.5, float(np.sqrt((sums**2).sum())) / len(values)
    print(f"{name:24} {values.mean():8.4f} {by_token / scale:12.2%} {by_file / scale:12.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    torch.set_num_threads(1)
    config = TrainConfig(steps=parser.parse_args().steps)
    corpus = prepare_text(DataConfig())
    runs = [replace(config, steps=round(share * config.steps)) for share in (1.0, 0.8)]
    long, short = (token_losses(trained(corpus, run), corpus, run.sequence_length) for run in runs)
    starts = corpus.heldout_starts["val"]
    print(
        f"val split: {len(corpus.heldout['val']):,} tokens of {len(starts)} files; a quarter of the tolerance is "
        f"{TOLERANCE / 4:.2%} of the loss"
    )
    print(f"{'':24} {'nats':>8} {'by token':>12} {'by file':>12}")
    report("loss", long, starts, float(long.mean()))
    report("difference to 0.8x steps", short - long, starts, float(long.mean()))


if __name__ == "__main__":
    main()
