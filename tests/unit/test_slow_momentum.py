"""Slow momentum against a slow twin of whole runs, against AdEMAMix at its limit, and where it must refuse."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hybrid_toy import flat, toy_model, toy_run, with_options

from hybrid_ray.config import HybridConfig
from hybrid_ray.config.jobfile import job_from_dict
from hybrid_ray.errors import ConfigError
from hybrid_ray.method import HybridTrainer
from hybrid_ray.method.predictors import build_predictor
from hybrid_ray.method.predictors.caution import restrain_
from hybrid_ray.method.weights import Weights
from hybrid_ray.optim import AdEMAMix
from hybrid_ray.optim.ademamix import slow_decay
from hybrid_ray.optim.muon import MuonAdamW, orthogonal_step
from hybrid_ray.optim.prune import AdamWPrune
from hybrid_ray.run_result import Replay


def settings(**changes: Any) -> HybridConfig:
    """Jumps after every 5 real steps, from the first to the last of 20."""
    values: dict[str, Any] = {
        "predictor": "slow_momentum",
        "warmup_steps": 0,
        "full_steps": 5,
        "prediction_horizon": 5,
        "correct_steps": 0,
        "beta3": 0.95,
        "divergence_sigma": 100.0,
    }
    return HybridConfig(**with_options(values | changes))


class Given:
    """A model whose gradients are the rows given, all of length 1, whatever its weights, and whose loss is always 1.

    So the twin needs no model, and the divergence monitor sees nothing.
    """

    def __init__(
        self, optimizer: Any, config: HybridConfig, *, schedule: Any = None, total_steps: int = 40,
        shape: tuple[int, ...] = (4,), replay: Replay | None = None,
    ) -> None:  # fmt: skip
        self.weights = torch.nn.Parameter(torch.tensor([0.5, -0.2, 0.1, 1.0]).reshape(shape))
        self.optimizer = optimizer([self.weights])
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule) if schedule else None
        self.module = torch.nn.Module()
        self.module.w = self.weights
        self.trainer = HybridTrainer(
            self.module, self.optimizer, config, lr_scheduler=scheduler, total_steps=total_steps, replay=replay
        )
        rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        self.rows = (rows / rows.norm(dim=1, keepdim=True)).reshape(-1, *shape)
        self.taken = 0
        self.jumps: list[list[float]] = []  # what predicted steps moved by

    def __call__(self) -> torch.Tensor:
        self.taken += 1
        product = (self.weights * self.rows[self.taken - 1]).sum()
        return product - product.detach() + 1.0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            before = self.weights.detach().clone()
            if self.trainer.step(self).predicted:
                self.jumps.append((self.weights.detach() - before).tolist())


def jumps_twin(
    rows: list[list[float]], *, lr: Any, real_before: int, nominal: int, horizon: int, beta3: float, adam: bool
) -> list[list[float]]:
    """D of every jump, from METHOD's formulas alone: K real steps, then one jump, to the end of the run."""
    size = len(rows[0])
    q, v, jumps, t, done = [0.0] * size, [0.0] * size, [], 0, 0
    while done < nominal:
        for _ in range(real_before):
            s, g, rate = (done + 1) / nominal, rows[t], lr(done)
            h = (1 - s) * math.log(0.5) / math.log(0.9) + s * math.log(0.5) / math.log(beta3)
            rho = 0.5 ** (1 / h)
            q = [rho * a + (1 - rho) * b for a, b in zip(q, g, strict=True)]
            v = [0.95 * a + 0.05 * b * b for a, b in zip(v, g, strict=True)]
            t, done = t + 1, done + 1
        roots = [math.sqrt(a / (1 - 0.95**t)) + 1e-8 if adam else 1.0 for a in v]
        jumps.append([-rate * 8.0 * s * real_before * a / b for a, b in zip(q, roots, strict=True)])
        done += horizon
    return jumps


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("device", ["model", "host"])
def test_equals_its_twin_under_a_schedule(kind: str, horizon: int, device: str) -> None:
    nominal = 4 * (5 + horizon)

    def factor(done: int) -> float:
        return 1.0 - done / nominal

    optimizer = adamw if kind == "adamw" else lambda parameters: torch.optim.SGD(parameters, lr=1e-2)
    given = Given(
        optimizer,
        settings(prediction_horizon=horizon, buffer_device=device),
        schedule=factor,
        total_steps=nominal,
    )
    given.run(nominal)
    twin = jumps_twin(
        given.rows.tolist(), lr=lambda done: 1e-2 * factor(done), real_before=5, nominal=nominal, horizon=horizon,
        beta3=0.95, adam=kind == "adamw",
    )  # fmt: skip
    whole = [
        [sum(part) for part in zip(*given.jumps[i : i + horizon], strict=True)] for i in range(0, 4 * horizon, horizon)
    ]
    assert len(whole) == len(twin) == 4
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(twin), rtol=1e-4, atol=1e-6)


def test_after_every_step_it_is_ademamix_but_for_when_the_jump_is_applied() -> None:
    """Gradients are given, so the order of the two halves of a step only shows in the weight decay: 0 here."""
    steps = 20
    hybrid = Given(
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
        settings(full_steps=1, prediction_horizon=1),
        total_steps=2 * steps,
    )
    hybrid.run(2 * steps)
    parameter = torch.nn.Parameter(torch.tensor([0.5, -0.2, 0.1, 1.0]))
    # The run's share that is done with a real step is (2t - 1) / 2M nominal steps, and t / M for the optimizer.
    optimizer = AdEMAMix([parameter], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, beta3=0.95, total_steps=2 * steps)
    for number in range(steps):
        parameter.grad = hybrid.rows[number].clone()
        optimizer.param_groups[0]["steps_taken"] = 2 * number
        optimizer.step()
    torch.testing.assert_close(hybrid.weights.detach(), parameter.detach(), rtol=1e-5, atol=1e-6)


def test_after_every_step_of_muon_it_is_muon_with_the_slow_average_in_its_own_step() -> None:
    """So full_steps 1 on Muon is the peer without skipped steps: each gradient is taken after all earlier jumps."""
    steps, lr, q, buffer = 20, 1e-2, torch.zeros(2, 2), torch.zeros(2, 2)
    hybrid = Given(
        lambda p: MuonAdamW([{"params": p, "muon": True}], lr=lr, weight_decay=0.1),
        settings(full_steps=1, prediction_horizon=1),
        total_steps=2 * steps,
        shape=(2, 2),
    )
    weights = hybrid.weights.detach().clone()
    hybrid.run(2 * steps)
    for number in range(steps):
        gradient, progress = hybrid.rows[number], (2 * number + 1) / (2 * steps)
        buffer = 0.95 * buffer + 0.05 * gradient
        q.lerp_(gradient, 1.0 - slow_decay(progress, 0.95))
        fast = orthogonal_step(0.95 * buffer + 0.05 * gradient)
        slow = orthogonal_step(q) * (q.norm() / buffer.norm())
        weights = (1.0 - lr * 0.1) * weights - lr * (fast + 8.0 * progress * slow)
    assert hybrid.taken == steps
    torch.testing.assert_close(hybrid.weights.detach(), weights, rtol=1e-4, atol=1e-5)


def test_orthogonal_matrices_jump_as_on_muon_with_adams_first_moment() -> None:
    steps, lr, q, first = 20, 1e-2, torch.zeros(2, 2), torch.zeros(2, 2)
    hybrid = Given(
        lambda p: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        settings(full_steps=5, prediction_horizon=1, matrices="orthogonal"),
        total_steps=6 * steps // 5,
        shape=(2, 2),
    )
    hybrid.run(6 * steps // 5)
    expected = []
    for number in range(steps):
        gradient, progress = hybrid.rows[number], (number + number // 5 + 1) / (6 * steps // 5)
        first = 0.9 * first + 0.1 * gradient
        q.lerp_(gradient, 1.0 - slow_decay(progress, 0.95))
        if number % 5 == 4:
            expected.append(-lr * 8.0 * progress * 5 * orthogonal_step(q) * (q.norm() / first.norm()))
    torch.testing.assert_close(torch.tensor(hybrid.jumps), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_only_hidden_matrices_are_orthogonal_and_an_optimizer_without_a_first_moment_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    jumps = {}
    for matrices in ("second_moment", "orthogonal"):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        predictor = build_predictor(Weights(optimizer, model), optimizer, settings(matrices=matrices), total_steps=40)
        assert predictor is not None
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        predictor.observe([p.grad for p in model.parameters()], rates=[1.0], progress=0.5)
        predictor.plan(5, [1.0], None)
        jumps[matrices] = [tensor.clone() for tensor in predictor.direction.tensors]
    same = [torch.equal(*pair) for pair in zip(*jumps.values(), strict=True)]
    assert same == [True, False, True]  # the table, the matrix, its bias
    singular = torch.linalg.svdvals(jumps["orthogonal"][1])
    assert float(singular.max() / singular.min()) < 2.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="SGD has no first moment"):
        build_predictor(Weights(optimizer, model), optimizer, settings(matrices="orthogonal"), total_steps=40)
    job: dict[str, Any] = {
        "hybrid": {"predictor": {"name": "slow_momentum", "matrices": "orthogonal"}},
        "train": {"parallel": "fsdp"},
        "resources": {"workers": 2},
    }
    with pytest.raises(ConfigError, match="needs each matrix as a whole"):
        job_from_dict(job)
    job_from_dict({**job, "train": {"parallel": "ddp"}})


def test_reversed_makes_the_opposite_of_each_of_its_jumps() -> None:
    """Gradients are given, so optimizer and slow average are the same in both runs."""
    hybrid = Given(adamw, settings())
    hybrid.run(40)
    slow = settings().predictor
    opposite = replace(settings(), predictor={"name": "reversed", "of": {"name": slow.name, **slow.options}})
    control = Given(adamw, opposite, replay=hybrid.trainer.replay_record())
    control.run(40)
    assert len(hybrid.jumps) == 20
    torch.testing.assert_close(torch.tensor(control.jumps), -torch.tensor(hybrid.jumps), rtol=1e-4, atol=1e-7)


def test_coupling_and_horizon_do_not_change_the_length() -> None:
    ends = []
    for total, changes in ((40, {}), (40, {"couple_lr": False}), (60, {"prediction_horizon": 10})):
        given = Given(lambda p: torch.optim.SGD(p, lr=1e-2), settings(**changes), total_steps=total)
        given.trainer.optimizer.param_groups[0]["initial_lr"] = 1.0  # lr / lr_max is 1/100
        given.run(5 + given.trainer.config.prediction_horizon)
        length = torch.tensor(given.jumps).sum(0).norm() / (5 / total)
        rho = given.trainer._cycle.predictor  # its average has another half-life where the run is longer
        ends.append(float(length / rho.average.tensors[0].norm()))
    assert ends == pytest.approx([ends[0]] * 3, rel=1e-4)


def test_a_refused_jump_is_not_made_up_for() -> None:
    given = Given(adamw, settings(gate="random", gate_rate=0.0))
    given.run(20)
    predictor = given.trainer._cycle.predictor
    assert predictor.since == 20
    direction = predictor.direction.tensors[0].clone()
    predictor.since = 5
    predictor.plan(5, [1.0], None)
    torch.testing.assert_close(direction, predictor.direction.tensors[0])


def test_real_steps_inside_a_jump_count_towards_the_next() -> None:
    given = Given(adamw, settings(correction_interval=2, prediction_horizon=4), total_steps=60)
    given.run(5 + 2 + 1 + 2)  # Full, Predict, a micro-correction, Predict
    assert given.trainer._cycle.predictor.since == 1
    given.run(5)
    assert given.trainer._cycle.predictor.since == 6


def test_no_jump_learns_from_a_gradient_that_was_not_applied() -> None:
    given = Given(adamw, settings())
    given.run(2)
    before = given.trainer._cycle.predictor.average.tensors[0].clone()
    given.rows[2] = torch.nan
    given.run(1)
    assert torch.equal(before, given.trainer._cycle.predictor.average.tensors[0])
    assert given.trainer._cycle.predictor.since == 2


def test_withdrawing_a_jump_restores_the_weights() -> None:
    given = Given(adamw, settings())
    given.run(5)
    before = given.weights.detach().clone()
    given.run(5)
    assert not torch.allclose(before, given.weights.detach())
    given.trainer._cycle.withdraw(keep=True, loss=1.0)
    torch.testing.assert_close(before, given.weights.detach())


@pytest.mark.parametrize("at", [3, 7, 23])
def test_a_checkpoint_goes_on_with_the_same_bits(at: int) -> None:
    whole = Given(adamw, settings())
    whole.run(40)
    first = Given(adamw, settings())
    first.run(at)
    second = Given(adamw, settings())
    second.weights.data.copy_(first.weights.data)
    second.trainer.load_state_dict(first.trainer.state_dict())
    second.taken = first.taken
    second.run(40 - at)
    assert torch.equal(whole.weights, second.weights)


@pytest.mark.parametrize("changes", [{"buffer_dtype": "bfloat16"}, {"buffer_device": "host"}])
def test_other_buffers_hold_the_same_average(changes: dict[str, str]) -> None:
    averages = []
    for options in ({}, changes):
        trainer, batches = toy_run(settings(**options), total_steps=400)
        for _ in range(100):
            trainer.step(batches)
        assert trainer._cycle is not None
        averages.append(torch.cat([t.flatten().float() for t in trainer._cycle.predictor.average.tensors]))
        narrow = options.get("buffer_dtype") == "bfloat16"
        on_device = trainer._cycle.predictor.bytes_per_parameter
        assert on_device == (0.0 if "buffer_device" in options else pytest.approx(8.0) if not narrow else on_device)
    assert float(torch.cosine_similarity(*averages, dim=0)) > 0.98


def test_without_the_length_of_the_run_it_refuses() -> None:
    optimizer = torch.optim.AdamW(toy_model().parameters())
    with pytest.raises(ConfigError, match="slow_momentum needs total_steps"):
        build_predictor(Weights(optimizer), optimizer, settings())


def test_an_optimizer_without_a_rule_is_refused_by_name() -> None:
    model = toy_model()
    for optimizer in (
        torch.optim.RMSprop(model.parameters()),
        torch.optim.NAdam(model.parameters()),
        AdamWPrune(model.parameters(), start=1, end=5),
    ):
        with pytest.raises(ConfigError, match=f"no rule for {type(optimizer).__name__}"):
            build_predictor(Weights(optimizer), optimizer, settings(), total_steps=40)


def test_it_trains() -> None:
    """On the toy regression, nearly half of the nominal steps predicted, and an end that is as good."""
    losses = {}
    for name, config in (("plain", HybridConfig(predictor="none")), ("slow", settings(alpha=2.0))):
        trainer, batches = toy_run(config, total_steps=400)
        for _ in range(400 if name == "slow" else 200):
            trainer.step(batches)
        assert flat(trainer.model).isfinite().all()
        losses[name] = float(((trainer.model(batches.x) - batches.y) ** 2).mean().detach())
        if name == "slow":
            assert trainer.statistics()["backward_reduction"] > 0.45
    assert losses["slow"] < 1.1 * losses["plain"]


def test_caution_leaves_out_what_the_averages_do_not_agree_on_or_what_is_noise() -> None:
    step = torch.tensor([0.5, -0.5, 0.04, -0.2])
    state = {"exp_avg": torch.tensor([1.0, 1.0, 1.0, -1.0])}
    signs = restrain_(step.clone(), state, kind="sign", decay=0.98)
    assert signs.tolist() == pytest.approx([0.5, 0.0, 0.04, -0.2])
    shrunk = restrain_(step.clone(), state, kind="shrink", decay=0.98)  # n is 99: noise has a size of 0.1
    expected = [u * max(0.0, 1.0 - 1.0 / (99.0 * u * u)) for u in step.tolist()]
    assert shrunk.tolist() == pytest.approx(expected, abs=1e-6)
