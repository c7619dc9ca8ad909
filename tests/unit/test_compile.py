"""torch.compile: evidence that it took, and a warning with eager going on where it did not."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from micro_runs import Listener, micro_run
from torch import Tensor, nn

from hybrid_ray.training.compile import compile_forward
from hybrid_ray.training.loop import train

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


def test_the_pattern_of_step_times_is_evidence(caplog: pytest.LogCaptureFixture) -> None:
    """The first call compiles and is long; those after it are beside the eager model's."""
    with caplog.at_level(logging.INFO, "hybrid_ray"):
        found = compile_forward(Tiny(), warm_up, backend="aot_eager").evidence()
    assert found["compile_first_seconds"] > 5 * found["compiled_step_seconds"]
    assert found["eager_step_seconds"] > 0
    assert f"eager: {1e3 * found['eager_step_seconds']:.1f} ms" in caplog.text
    assert found["recompilations"] == 0


def test_a_graph_compiled_in_the_middle_of_a_run_is_told(caplog: pytest.LogCaptureFixture) -> None:
    compiled = compile_forward(Tiny(), warm_up, backend="aot_eager")
    compiled.say_recompilations()
    assert not [record for record in caplog.records if "more graphs" in record.getMessage()]
    compiled.forward(X.double().float()[:2])  # another shape
    assert compiled.recompilations == 1
    compiled.say_recompilations()
    assert "1 more graphs during the run" in caplog.text


def test_a_compiler_that_gains_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def slowly(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        def run(*arguments: Tensor) -> object:
            time.sleep(0.02)
            return graph(*arguments)

        return run

    assert compile_forward(Tiny(), warm_up, backend=slowly).took  # type: ignore[arg-type]
    assert "worked but is not faster" in caplog.text


def full(sequences: int) -> RuntimeError:
    return RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {sequences} bytes")


def test_out_of_memory_is_no_failure_of_the_compiler() -> None:
    def greedy(forward: Callable[..., Tensor]) -> None:
        raise full(8)

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        compile_forward(Tiny(), greedy, backend="aot_eager")


def test_an_eager_model_that_does_not_fit_is_left_untimed() -> None:
    model = Tiny()

    def fits_compiled(forward: Callable[..., Tensor]) -> None:
        if forward is model:
            raise full(8)
        warm_up(forward)

    found = compile_forward(model, fits_compiled, backend="aot_eager")
    assert found.took
    assert found.eager_seconds is None


def test_many_models_in_one_process_are_all_compiled() -> None:
    taken = [compile_forward(Tiny(), warm_up, backend="aot_eager").graphs for _ in range(12)]
    assert taken == [1] * 12


def test_a_compiler_that_fails_is_said_and_eager_goes_on() -> None:
    def broken(graph: object, inputs: object) -> Callable[..., Tensor]:
        raise OSError("no compiler on this machine")

    model = Tiny()
    with pytest.warns(RuntimeWarning, match="the run continues in eager mode"):
        compiled = compile_forward(model, warm_up, backend=broken)  # type: ignore[arg-type]
    assert not compiled.took
    assert torch.equal(compiled.forward(X), model(X))


def test_a_rank_that_others_wait_for_does_not_go_on_eagerly() -> None:
    """Of a sharded model: it raises, and times no eager forward, which could end on one rank alone."""

    def broken(graph: object, inputs: object) -> Callable[..., Tensor]:
        raise OSError("no compiler on this machine")

    with pytest.raises(RuntimeError, match=r"set train\.compile to false"):
        compile_forward(Tiny(), warm_up, alone=False, backend=broken)  # type: ignore[arg-type]
    assert compile_forward(Tiny(), warm_up, alone=False, backend="aot_eager").eager_seconds is None


def test_what_the_start_itself_compiles_is_not_the_middle_of_the_run() -> None:
    found = compile_forward(Tiny(), warm_up, backend="aot_eager")
    torch.compile(lambda x: x + 1, backend="aot_eager")(X)  # as an optimizer's step in the rehearsal
    assert found.recompilations == 1
    assert found.started().recompilations == 0


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
