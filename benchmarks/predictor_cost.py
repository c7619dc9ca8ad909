"""Cost of predicting: time per byte, time per step, memory.

    python benchmarks/predictor_cost.py [copy] [step] [off] [on] [confidence] [memory] [bytes] [stream]

Without arguments it runs the first seven on the CPU, about five minutes on two cores. ``stream`` is for a GPU (half a
minute; on a CPU it only shows, on nano, that it works). Every comparison alternates its two sides in short blocks in
one process and prints the median ratio of neighbouring blocks with quartiles. Blocks of one thread are timed in CPU
time, so that other programs on the core do not count.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import torch
from figures import alternate, told

from hybrid_ray.config import HybridConfig, ModelConfig, TrainConfig
from hybrid_ray.method import HybridTrainer, Phase
from hybrid_ray.method.predictors import build_predictor
from hybrid_ray.method.weights import Weights
from hybrid_ray.models import GPT2, GPT2Shape, build_model, count_parameters
from hybrid_ray.optim import build_optimizer, build_schedule
from hybrid_ray.training.setup import synchronize

NANO = TrainConfig()  # batch 16 x 64, AdamW: about 25 ms per real step
CYCLE = HybridConfig(
    confidence_threshold=0.0,
    warmup_steps=0,
    full_steps=10,
    prediction_horizon=5,
    correct_steps=5,
    first_fraction=0.0,
    off_fraction=0.0,
)
SHORT = replace(CYCLE, full_steps=5, correct_steps=0, gate="always", trust="off")  # five real steps between predictions


class Tokens:
    """Random tokens, made before timing starts. Their loss means nothing, but they cost as much as text."""

    def __init__(self, model: GPT2, config: TrainConfig) -> None:
        shape = (config.batch_size, config.sequence_length)
        self.model = model
        self.x, self.y = (torch.randint(model.vocab_size, shape) for _ in range(2))

    def loss(self) -> torch.Tensor:
        return self.model(self.x, self.y)


class Plain:
    """A plain training loop as a user would write it."""

    def __init__(self, model: GPT2, config: TrainConfig) -> None:
        self.tokens, self.model = Tokens(model, config), model
        self.optimizer = build_optimizer(model, config)
        self.schedule = build_schedule(self.optimizer, config)

    def step(self) -> None:
        loss = self.tokens.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()


class Hybrid:
    """The same training with `HybridTrainer`."""

    def __init__(self, model: GPT2, config: TrainConfig, hybrid: HybridConfig) -> None:
        self.tokens = Tokens(model, config)
        optimizer = build_optimizer(model, config)
        schedule = build_schedule(optimizer, config)
        self.trainer = HybridTrainer(
            model, optimizer, hybrid, lr_scheduler=schedule, total_steps=config.steps, clip_norm=1.0
        )

    def step(self) -> bool:
        return self.trainer.step(self.tokens.loss).predicted

    def skip_predictions(self) -> None:
        """Go on to the next real step."""
        while self.trainer.phases.position.phase is Phase.PREDICT:
            self.step()


def nano() -> GPT2:
    torch.manual_seed(0)
    return build_model(ModelConfig(), vocab_size=257, sequence_length=NANO.sequence_length)


def repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def copy() -> None:
    """A predicted step moves 12 bytes per parameter (reads w and D, writes w), a copy 8."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(preset="124M"), vocab_size=50_257, sequence_length=1024)
    size = count_parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    predictor = build_predictor(Weights(optimizer), optimizer, CYCLE)
    assert predictor is not None
    assert predictor.direction is not None
    for tensor in predictor.direction.tensors:
        tensor.normal_(0.0, 1e-6)
    source = [parameter.detach() for parameter in model.parameters()]
    target = [torch.empty_like(tensor) for tensor in source]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        steps, copies = alternate(
            predictor.step, lambda: torch._foreach_copy_(target, source), blocks=40, clock=time.perf_counter
        )
        ratios = [(step / 12) / (copied / 8) for step, copied in zip(steps, copies, strict=True)]
        best = (min(steps) / 12) / (min(copies) / 8)
        print(
            f"copy    {size:,} parameters, {threads} thread(s): predicted step {1e3 * min(steps):.0f} ms, copy "
            f"{1e3 * min(copies):.0f} ms; time per byte relative to the copy: {told(ratios)}, best of each {best:.3f}"
        )
    torch.set_num_threads(1)


def step() -> None:
    """A predicted step compared with a real one on nano, including all of the trainer's work."""
    hybrid = Hybrid(nano(), NANO, CYCLE)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(400):
        started = time.process_time()
        predicted = hybrid.step()
        times[predicted].append(time.process_time() - started)
    real, predicted_ms = (1e3 * statistics.median(times[kind]) for kind in (False, True))
    print(f"step    nano: real {real:.2f} ms, predicted {predicted_ms:.3f} ms: 1/{real / predicted_ms:.0f}")


def off() -> None:
    """The trainer with prediction off compared with the plain loop, on nano."""
    plain, trainer = Plain(nano(), NANO), Hybrid(nano(), NANO, replace(CYCLE, predictor="none"))

    ours, theirs = alternate(
        partial(repeat, trainer.step, 10), partial(repeat, plain.step, 10), blocks=60, clock=time.process_time
    )
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"off     nano, prediction off / plain loop, {1e2 * min(theirs):.1f} ms per step: {told(ratios)}")


def on() -> None:
    """Real steps with prediction on compared with prediction off, where a step takes 0.3 s or more.

    The cycle is short: every five real steps include a comparison with the last prediction, a plan, and the first
    gradient after a prediction. Only real steps are timed; ``step`` measures predicted ones.
    """
    for predictor in ("ema_nesterov", "slow_momentum"):
        _on(predictor)


def _on(predictor: str) -> None:
    config = replace(NANO, sequence_length=96)
    shape = GPT2Shape(layers=4, heads=4, width=256, context=128)

    def side(predictor: str) -> Hybrid:
        torch.manual_seed(0)
        return Hybrid(GPT2(shape, 257, ModelConfig()), config, replace(SHORT, predictor=predictor))

    whole, bare, steps = side(predictor), side("none"), SHORT.full_steps
    ours, theirs = alternate(
        partial(repeat, whole.step, steps),
        partial(repeat, bare.step, steps),
        blocks=12,
        clock=time.process_time,
        before=whole.skip_predictions,
    )
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    size = count_parameters(whole.tokens.model)
    print(
        f"on      {predictor}, {size:,} parameters, {min(theirs) / steps:.2f} s per real step, on / off: {told(ratios)}"
    )
    found = whole.trainer.statistics()
    real = sum(found["phase_seconds"].values()) - found["phase_seconds"]["predict"]
    share = 100 * found["part_seconds"]["overhead"] / real
    print(f"        {found['jumps']} predictions in between; the trainer's own work (part 'overhead'): {share:.2f} %")


def confidence() -> None:
    """Real steps with a confidence compared with those of ``gate: always``, on pico. Both make every jump."""
    config = replace(SHORT, predictor="slow_momentum")

    def side(**changes: Any) -> Hybrid:
        torch.manual_seed(0)
        shape = ModelConfig(preset="pico")
        model = build_model(shape, vocab_size=257, sequence_length=NANO.sequence_length)
        return Hybrid(model, replace(NANO, steps=1000), replace(config, **changes))

    for name in ("linear", "mlp", "rssm"):
        whole, bare, steps = side(gate="confidence", dynamics=name), side(), SHORT.full_steps
        ours, theirs = alternate(
            partial(repeat, whole.step, steps),
            partial(repeat, bare.step, steps),
            blocks=60,
            clock=time.process_time,
            before=lambda whole=whole, bare=bare: (whole.skip_predictions(), bare.skip_predictions()),
        )
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"confid. pico, {1e3 * min(theirs) / steps:.1f} ms per real step, {name} / gate: always: {told(ratios)}")


def memory() -> None:
    """Resident memory during 1,000 hybrid steps of nano."""
    hybrid, process = Hybrid(nano(), NANO, CYCLE), psutil.Process()
    seen = []
    for number in range(1, 1101):
        hybrid.step()
        if number % 50 == 0 and number >= 100:
            gc.collect()
            seen.append(process.memory_info().rss / 2**20)
    middle = (len(seen) - 1) / 2
    slope = (
        sum((i - middle) * mib for i, mib in enumerate(seen)) / sum((i - middle) ** 2 for i in range(len(seen))) / 50
    )
    print(
        f"memory  1,000 hybrid steps of nano after the first 100: {seen[0]:.1f} MiB at first, {seen[-1]:.1f} at the "
        f"end, peak {max(seen):.1f}; slope {1024 * slope:.2f} KiB per step"
    )


def extra_bytes() -> None:
    """Extra bytes per parameter of each predictor's allocated buffers."""
    for name in ("ema_nesterov", "snoo", "linear_fit", "momentum", "random", "reversed", "zero"):
        row = []
        for dtype, device in (("float32", "model"), ("bfloat16", "model"), ("float32", "host"), ("bfloat16", "host")):
            model = nano()
            optimizer = build_optimizer(model, NANO)
            config = replace(CYCLE, predictor=name, buffer_dtype=dtype, buffer_device=device)
            predictor = build_predictor(Weights(optimizer), optimizer, config)
            assert predictor is not None
            row.append(f"{dtype}/{device} {predictor.bytes_per_parameter:.2f}+{predictor.host_bytes_per_parameter:.2f}")
        print(f"bytes   {name:<13} bytes per parameter, device+host: {', '.join(row)}")


def stream() -> None:
    """A predicted step on a GPU: its time, the time to launch it, and for comparison the time to copy the weights.

    With buffers in fp32, in bf16, and on the host a step moves 12, 10 and 12 bytes per parameter; a copy moves 8.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for preset in ("124M", "1.5B") if device.type == "cuda" else ("nano",):
        torch.manual_seed(0)
        with device:
            model = build_model(ModelConfig(preset=preset), vocab_size=50_257, sequence_length=1024)
        copied = copy_seconds(model, device)
        size, optimizer = count_parameters(model), torch.optim.SGD(model.parameters(), lr=0.1)
        print(f"stream  {preset}, copy: {1e3 * copied:.3f} ms, {8e-9 * size / copied:,.0f} GB/s, on {device}")
        for dtype, place, moved in (("float32", "model", 12), ("bfloat16", "model", 10), ("float32", "host", 12)):
            config = replace(CYCLE, buffer_dtype=dtype, buffer_device=place)
            predictor = build_predictor(Weights(optimizer), optimizer, config)
            assert predictor is not None
            launched, seconds = on_stream(predictor.step, device)
            a_byte = (seconds / moved) / (copied / 8)
            print(
                f"stream  {preset}, buffers {dtype}/{place}: a predicted step {1e3 * seconds:.3f} ms, "
                f"{1e3 * launched:.3f} ms to launch; time per byte relative to the copy {a_byte:.2f}"
            )


def copy_seconds(model: GPT2, device: torch.device) -> float:
    """Seconds of a copy of all weights, on the device."""
    source = [parameter.detach() for parameter in model.parameters()]
    target = [torch.empty_like(tensor) for tensor in source]
    return on_stream(lambda: torch._foreach_copy_(target, source), device)[1]


def on_stream(work: Callable[[], object], device: torch.device, *, times: int = 20) -> tuple[float, float]:
    """Median seconds until ``work`` returns and until the device has finished it, after three warmup calls."""
    launched, done = [], []
    for _ in range(3 + times):
        synchronize(device)
        started = time.perf_counter()
        work()
        launched.append(time.perf_counter() - started)
        synchronize(device)
        done.append(time.perf_counter() - started)
    return statistics.median(launched[3:]), statistics.median(done[3:])


CPU_PARTS = {
    "copy": copy,
    "step": step,
    "off": off,
    "on": on,
    "confidence": confidence,
    "memory": memory,
    "bytes": extra_bytes,
}
PARTS = {**CPU_PARTS, "stream": stream}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which measurements; default: all but stream")
    torch.set_num_threads(1)
    for part in parser.parse_args().parts or CPU_PARTS:
        PARTS[part]()
