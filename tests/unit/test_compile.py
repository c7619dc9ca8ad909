"""torch.compile: evidence that it took, and a warning with eager going on where it did not."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from micro_runs import Listener, micro_run
from torch import Tensor, nn

from hybrid_ray.train.compile import compile_forward
from hybrid_ray.train.loop import train

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).square().mean()


class Opaque(Tiny):
    """A model that dynamo leaves alone."""

    @torch._dynamo.disable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def warm_up(forward: Callable[..., Tensor]) -> None:
    forward(X).backward()


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_a_compiled_model_says_so_and_computes_the_same() -> None:
    model = Tiny()
    compiled = compile_forward(model, warm_up, backend="aot_eager")
    assert compiled.took
    assert (compiled.graphs, compiled.breaks) == (1, 0)
    assert compiled.first_seconds > compiled.step_seconds > 0
    assert torch.allclose(compiled.forward(X), model(X))


def test_many_models_in_one_process_are_all_compiled() -> None:
    taken = [compile_forward(Tiny(), warm_up, backend="aot_eager").graphs for _ in range(12)]
    assert taken == [1] * 12


def test_a_compiler_that_fails_is_said_and_eager_goes_on() -> None:
    def broken(graph: object, inputs: object) -> Callable[..., Tensor]:
        raise OSError("no compiler on this machine")

    model = Tiny()
    with pytest.warns(RuntimeWarning, match="the run goes on without it"):
        compiled = compile_forward(model, warm_up, backend=broken)  # type: ignore[arg-type]
    assert not compiled.took
    assert torch.equal(compiled.forward(X), model(X))


def test_a_compiler_that_does_nothing_is_said() -> None:
    with pytest.warns(RuntimeWarning, match="compiled nothing"):
        assert not compile_forward(Opaque(), warm_up, backend="aot_eager").took


@pytest.mark.slow
def test_a_compiled_run_trains_as_an_eager_one() -> None:
    """With the real backend. Where it has no C++ compiler the run says so and trains eagerly."""
    compiled, eager = Listener(), Listener()
    train(micro_run(steps=10, evaluations=1), reporter=eager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(micro_run(steps=10, evaluations=1, compile=True), reporter=compiled)
    assert [record.loss for record in compiled.steps] == pytest.approx(
        [record.loss for record in eager.steps], rel=1e-4
    )
    assert result.other_seconds["compile"] > 0
    assert result.machine["compiled"] == (result.machine["compiled_graphs"] > 0)
