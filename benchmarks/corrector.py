"""Does residual feedback make the next prediction better? On and off, paired over seeds, on text.

    python benchmarks/corrector.py [--seeds 5] [--steps 400] [--rho 0.3] [--gain 1.0]

Each pair trains nano from the same weights on the same batches, with confidence threshold 0 and cycles of 5 full, 3
predicted and 5 correct steps. Prints the mean relative error of predictions after a jump, |d_act - d_pred| / |d_act| on
sampled coordinates, and the mean training loss of the last fifth of the run. Both are ratios on / off with a 95 %
t-interval on log ratios. About a minute per seed on one core.
"""

import argparse
import math
import statistics

import torch
from scipy import stats

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, TrainConfig
from hybrid_ray.data import BatchSampler, Corpus, prepare_text
from hybrid_ray.method import HybridTrainer
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer, build_schedule


def run(corpus: Corpus, *, seed: int, steps: int, rho: float, gain: float) -> tuple[float, float]:
    """Mean prediction error after a jump, and the mean loss of the last fifth of the steps."""
    train = TrainConfig(steps=steps)
    torch.manual_seed(seed)
    model = build_model(ModelConfig(), vocab_size=corpus.vocab_size, sequence_length=train.sequence_length)
    optimizer = build_optimizer(model, train)
    config = HybridConfig(
        confidence_threshold=0.0,
        warmup_steps=steps // 8,
        full_steps=5,
        prediction_horizon=3,
        correct_steps=5,
        predictor={"name": "ema_nesterov", "gain": gain},  # type: ignore[arg-type]
        residual_feedback=rho,
        first_fraction=0.0,
        off_fraction=0.0,
    )
    trainer = HybridTrainer(
        model,
        optimizer,
        config,
        lr_scheduler=build_schedule(optimizer, train),
        clip_norm=train.clip_norm,
        seed=seed,
    )
    sampler = BatchSampler(corpus.train, batch_size=train.batch_size, sequence_length=train.sequence_length, seed=seed)
    losses = [trainer.step(lambda: model(*sampler.next())).loss for _ in range(steps)]
    last = [loss for loss in losses[-steps // 5 :] if loss is not None]
    return trainer.statistics()["mean_error_after_jump"], statistics.mean(last)


def interval(pairs: list[tuple[float, float]]) -> str:
    """The mean ratio on / off and its 95 % t-interval."""
    logs = [math.log(on / off) for on, off in pairs]
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.mean(logs)
    return f"{math.exp(middle):.4f}  (95 %: {math.exp(middle - half):.4f} to {math.exp(middle + half):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rho", type=float, default=0.3)
    parser.add_argument("--gain", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = prepare_text(DataConfig())
    errors, losses = [], []
    for seed in range(arguments.seeds):
        (on_error, on_loss), (off_error, off_loss) = (
            run(corpus, seed=seed, steps=arguments.steps, rho=rho, gain=arguments.gain) for rho in (arguments.rho, 0.0)
        )
        errors.append((on_error, off_error))
        losses.append((on_loss, off_loss))
        print(
            f"seed {seed}: error on {on_error:.4f} off {off_error:.4f}, loss on {on_loss:.4f} off {off_loss:.4f}",
            flush=True,
        )
    print(f"rho {arguments.rho}, gain {arguments.gain}, {arguments.steps} steps, {arguments.seeds} seeds, on / off:")
    print(f"  prediction error {interval(errors)}")
    print(f"  last losses      {interval(losses)}")


if __name__ == "__main__":
    main()
