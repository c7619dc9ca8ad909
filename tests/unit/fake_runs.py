"""Runs on fake tensors, followed by PyTorch's own memory tracker, and on real ones, followed by its profiler."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, Split, TrainConfig
from hybrid_ray.data import Corpus
from hybrid_ray.memory.trace import Numbers
from hybrid_ray.run_result import Replay
from hybrid_ray.tasks.text import TextTask
from hybrid_ray.training.setup import TrainSetup

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tokens:
    """A corpus of zeros, of which only the shapes matter. Evaluations are of one sequence."""

    classes: int
    fingerprint: str = "zeros"

    def sampler(self, *, batch_size: int, sequence_length: int, **_: int) -> "TokenSampler":
        return TokenSampler(batch_size, sequence_length)

    def stretches(self, split: Split, *, sequence_length: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield TokenSampler(1, sequence_length).next()


@dataclass(frozen=True)
class TokenSampler:
    rows: int
    length: int

    def next(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.rows, self.length, dtype=torch.long), torch.zeros(
            self.rows, self.length, dtype=torch.long
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def run_of(
    preset: str,
    micro: int,
    *,
    length: int = 64,
    accumulate: int = 1,
    hybrid: Any = None,
    model: Any = None,
    **train: Any,
) -> RunConfig:
    """A run, on a CPU if ``train`` says no other device, with micro-batches of ``micro`` sequences."""
    return RunConfig(
        model=ModelConfig(preset=preset, **(model or {})),
        train=TrainConfig(
            steps=100,
            batch_size=micro * accumulate,
            micro_batch_size=micro,
            sequence_length=length,
            **{"device": "cpu", **train},
        ),
        hybrid=HybridConfig(warmup_steps=0, **(hybrid or {})),
    )


def text_task(run: RunConfig, data: Tokens) -> TextTask:
    """GPT-2 on zeros."""
    length = run.train.sequence_length
    return TextTask(model=run.model, data=DataConfig(), sequence_length=length, corpus=cast(Corpus, data))


def tracked_peak(run: RunConfig, data: Tokens) -> int:
    """Bytes at the peak of two real steps and a predicted one of the run's own setup, by PyTorch's MemTracker."""
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")
        with Numbers():
            setup = _setup(run, data)
        tracker = MemTracker()
        tracker.track_external(setup.module)
        with tracker, Numbers():
            host = _steps(setup, run, before_each=tracker.reset_mod_stats)
    return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"]) - host


def _setup(run: RunConfig, data: Tokens) -> TrainSetup:
    """The setup, made in the type of its weights: a module of fake tensors can't be converted."""
    usual, convert = torch.get_default_dtype(), nn.Module.to
    torch.set_default_dtype(torch.bfloat16 if run.train.weights == "bf16" else usual)
    nn.Module.to = lambda module, *_: module  # type: ignore[assignment, method-assign]
    try:
        return TrainSetup(run, text_task(run, data), CPU)
    finally:
        nn.Module.to = convert  # type: ignore[method-assign]
        torch.set_default_dtype(usual)


def _steps(setup: TrainSetup, run: RunConfig, *, before_each: Callable[[], None]) -> int:
    """Two real steps and a predicted one. Returns the bytes of what would live elsewhere, had there been a GPU."""
    groups = 3 if run.train.optimizer == "adamwprune" else 2
    training = setup.fresh(run, replay=Replay(phases="FFP", norms=((1.0,) * groups,)))
    loss = setup.next_loss(training, lambda tokens: None)

    def closure() -> Tensor:
        before_each()  # a forward
        return loss()

    for _ in range(2 if run.hybrid.predictor.name == "none" else 3):
        training.trainer.step(closure)
    host: list[Tensor] = []
    if run.train.device != "cuda":
        return 0
    if run.train.optimizer_device == "host":
        host += [value for state in training.optimizer.state.values() for value in state.values()]
    if run.hybrid.buffer_device == "host":
        for buffers in training.trainer.state_dict()["parts"]["cycle"]["predictor"]["buffers"].values():
            host += buffers["tensors"]
    return sum(tensor.numel() * tensor.element_size() for tensor in host)


def allocated_peak(run: RunConfig, data: Tokens) -> int:
    """Bytes at the peak of the same steps with real tensors, by what PyTorch's profiler hears from the allocator."""
    setup = _setup(run, data)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _steps(setup, run, before_each=lambda: None)
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    level = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in setup.module.parameters())
    return peak + weights
