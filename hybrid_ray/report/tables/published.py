"""The numbers reported by the documents this project grew out of, for comparison with the numbers measured here.

Values are copied as printed. docs/method.md, section 2, explains what they measured: the predicted steps of that
trainer did not move the weights, its micro-corrections took no step, and its comparison changed batch size and
precision together with prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_ray.config import PublishedName

__all__ = ["PUBLISHED", "Published", "Quantity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One row. ``ours`` names our quantity to compare with (`tables.configurations.OURS`); None: we have none."""

    name: str
    values: tuple[str, ...]  # as printed, one per configuration; empty: the document gives none
    ours: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One published table. ``arms`` maps each configuration of the document to the one of ours it is compared with."""

    title: str
    source: str
    arms: Mapping[str, str]
    rows: tuple[Quantity, ...]
    remark: str


_MEANT = (
    "In the published trainer predicted steps did not move the weights, Correct computed no gradient and "
    "micro-corrections took no step, so its speedup is that of skipping work. Here predicted steps move the weights, "
    "and corrections are real steps."
)


def _mnist(arm: str, *, place: int) -> Published:
    rows = (
        ("training time", ("810.4 s", "599.0 s", "431.5 s"), "train_seconds"),
        ("speedup (raw seconds)", ("", "1.35×", "1.88×"), "speedup"),
        ("net speedup over stopping early (in plain steps)", ("", "", ""), "net_speedup"),
        ("accuracy", ("97.45%", "99.05%", "99.37%"), "accuracy"),
        ("memory", ("195.3 MB", "161.8 MB", "189.1 MB"), "most_memory_bytes"),
        ("backward reduction (steps predicted)", ("", "32.8%", "42.8%"), "predicted_share"),
        ("divergences", ("", "0", "0"), "diverged"),
    )
    return Published(
        title=f"MNIST CNN, {arm}",
        source="Phase 2B: Real Model Validation Plan, section MNIST CNN Validation Results (2026-02-07)",
        arms={"baseline": "baseline", arm: "hybrid"},
        rows=tuple(Quantity(name=name, values=(values[0], values[place]), ours=ours) for name, values, ours in rows),
        remark=(
            "Published: MNIST, a 2-layer CNN of about 50K parameters, a CPU, one run, another framework; batch size "
            "and optimizer are not stated. Here: digits rendered by this package, 49,022 parameters, several seeds, "
            "accuracy on the test split. Compare ratios, not seconds. The published accuracy rose when steps were "
            f"skipped, which points to the noise of single runs or to an untuned baseline. {_MEANT}"
        ),
    )


PUBLISHED: Mapping[PublishedName, Published] = {
    "mnist_cnn_conservative": _mnist("conservative", place=1),
    "mnist_cnn_aggressive": _mnist("aggressive", place=2),
    "gpt2_small_50_steps": Published(
        title="GPT-2 Small, 50 steps",
        source="Phase 2B Validation: COMPLETE (2026-02-07)",
        arms={"Baseline": "baseline", "HybridTrainer": "hybrid", "Memory-Optimized": "memory_optimised"},
        rows=(
            Quantity(name="total time", values=("31.3s", "25.1s", "18.0s"), ours="train_seconds"),
            Quantity(name="speedup (raw seconds)", values=("1.0×", "1.25×", "1.74×"), ours="speedup"),
            Quantity(name="net speedup over stopping early (in plain steps)", values=(), ours="net_speedup"),
            Quantity(name="average step time", values=("624ms", "498ms", "345ms"), ours="step_seconds"),
            Quantity(
                name="throughput, predicted steps counted as if they read a batch",
                values=("409 tok/s", "510 tok/s", "1,419 tok/s"),
                ours="nominal_tokens_per_second",
            ),
            Quantity(name="throughput, tokens actually read", values=(), ours="tokens_per_second"),
            Quantity(name="initial memory", values=("3.8 GB", "3.8 GB", "3.7 GB"), ours="first_memory_bytes"),
            Quantity(name="final memory", values=("4.2 GB", "14.1 GB", "8.8 GB"), ours="last_memory_bytes"),
            Quantity(name="peak memory", values=("4.2 GB", "14.1 GB", "8.8 GB"), ours="most_memory_bytes"),
            Quantity(name="initial training loss", values=("449.4", "449.0", "456.8"), ours="first_train_loss"),
            Quantity(name="final training loss", values=("64.1", "80.0", "80.4"), ours="last_train_loss"),
            Quantity(name="reduction of training loss", values=("85.7%", "82.2%", "82.4%"), ours="loss_reduction"),
            Quantity(name="held-out loss", values=(), ours="loss"),
            Quantity(name="share of steps: warmup", values=("", "10%", ""), ours="share:warmup"),
            Quantity(name="share of steps: full", values=("", "20%", ""), ours="share:full"),
            Quantity(name="share of steps: predict", values=("", "40%", ""), ours="share:predict"),
            Quantity(name="share of steps: correct", values=("", "30%", ""), ours="share:correct"),
            Quantity(name="first step (initialisation)", values=("3.3s", "", "")),
            Quantity(name="time per step: warmup", values=("", "4.6s → 0.7s", ""), ours="step:warmup"),
            Quantity(name="time per step: full", values=("0.5-0.6s", "0.7s", "0.5-0.6s"), ours="step:full"),
            Quantity(name="time per step: predict", values=("", "0.02-0.3s", "0.02-0.3s"), ours="step:predict"),
            Quantity(name="time per step: correct", values=("", "0.07-0.3s", ""), ours="step:correct"),
        ),
        remark=(
            "Published: GPT-2 Small on an RTX 5080, one run of 50 steps on random tokens, another framework, FP16 "
            "where precision was reduced (here bf16), memory of the whole card. Here: model, data and machine as named "
            "at the top, memory of the process between steps (on a GPU: what PyTorch allocated). Random tokens have "
            "nothing to learn: no held-out loss can fall below ln(50257) = 10.82, and the published loss begins at "
            "449, forty times the loss of guessing. The published Memory-Optimized column also changes the batch size "
            "(8 instead of 4) and the precision, so its speedup is not the speedup of predicting. Here the same "
            f"settings were also trained without prediction. {_MEANT}"
        ),
    ),
}
