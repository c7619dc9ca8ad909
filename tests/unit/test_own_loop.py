"""The trainer in a loop of one's own: other schedules, optimizers, models and mixed precision than the package's."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hybrid_toy import Batches, flat, quick, toy_model, toy_run
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hybrid_ray.errors import CheckpointError, ConfigError, UnsupportedOptimizer
from hybrid_ray.method import HybridTrainer
from hybrid_ray.optim.ademamix import AdEMAMix
from hybrid_ray.optim.muon import MuonAdamW, MuonAdEMAMix


def muon_groups(parameters: Any) -> list[dict[str, Any]]:
    """The first parameter is Muon's."""
    first, *rest = parameters
    return [{"params": [first], "muon": True}, {"params": rest, "muon": False}]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=5e-2),
    "SGD, steep": lambda p: torch.optim.SGD(p, lr=0.5),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=2e-2, momentum=0.9),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=2e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=5e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=5e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "lr as a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "AdEMAMix": lambda p: AdEMAMix(p, lr=1e-2, total_steps=80),
    "Muon": lambda p: MuonAdamW(muon_groups(p)),
    "Muon with AdEMAMix's average": lambda p: MuonAdEMAMix(muon_groups(p), total_steps=80),
}


class MasterWeights(torch.optim.AdamW):
    """Keeps the weights in fp32 and writes them over the model's, as mixed-precision optimizers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        groups = [group["params"] for group in self.param_groups]
        if not hasattr(self, "masters"):
            self.masters = [[p.detach().clone() for p in group] for group in groups]
        for group, masters in zip(groups, self.masters, strict=True):
            torch._foreach_copy_(group, masters)
        super().step()
        for group, masters in zip(groups, self.masters, strict=True):
            torch._foreach_copy_(masters, group)


@pytest.mark.parametrize("predictor", ["ema_nesterov", "snoo", "linear_fit", "zero"])
def test_rates_written_by_the_loop_are_a_schedule_bit_for_bit(predictor: str) -> None:
    settings = quick(predictor=predictor, **({"gain": 0.5} if predictor in ("ema_nesterov", "linear_fit") else {}))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 8) * (1.0 - step / 70)

    def run(written: bool) -> tuple[torch.Tensor, list[float]]:
        model = toy_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = None if written else LambdaLR(optimizer, factor)
        trainer = HybridTrainer(model, optimizer, settings, lr_scheduler=schedule)
        batches, confidences = Batches(model), []
        for step in range(60):
            if written:
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2 * factor(step)
            if step == 31 and written:  # just after a plan: what it was coupled to is part of the state
                state, before = trainer.state_dict(), flat(model)
                trainer = HybridTrainer(model, optimizer, settings)
                trainer.load_state_dict(state)
                assert torch.equal(flat(model), before)
            confidences.append(trainer.step(batches).confidence)
        assert trainer.replay_record().predicted_steps > 10
        return flat(model), confidences

    (weights, confidences), (others, expected) = run(True), run(False)
    assert confidences == expected
    assert torch.equal(weights, others)


def test_a_rate_that_was_zero_when_the_trainer_was_made_moves_predictions_later() -> None:
    trainer, batches = toy_run(quick(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.0))
    trainer.optimizer.param_groups[0]["lr"] = 1e-2
    moved = []
    for _ in range(40):
        before = flat(trainer.model)
        if trainer.step(batches).predicted:
            moved.append(not torch.equal(flat(trainer.model), before))
    assert moved
    assert all(moved)


@pytest.mark.parametrize("changes", [{}, {"prediction_horizon": 1}, {"gain": 4.0}, {"correction_interval": 2}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_that_steps_from_the_weights_is_refused(name: str, changes: dict[str, Any]) -> None:
    trainer, batches = toy_run(quick(sample_one_in=1, **changes), optimizer=OPTIMIZERS[name])
    for _ in range(120):
        trainer.step(batches)
    assert trainer.health.jump_check.undone == 0


@pytest.mark.parametrize("predictor", ["ema_nesterov", "snoo", "linear_fit"])
def test_an_optimizer_that_keeps_the_weights_itself_is_refused_after_the_first_jumps(predictor: str) -> None:
    trainer, batches = toy_run(quick(predictor=predictor), optimizer=lambda p: MasterWeights(p, lr=3e-3))

    def train() -> None:
        for _ in range(200):
            trainer.step(batches)

    with pytest.raises(UnsupportedOptimizer, match="MasterWeights undid 3 of the first predictions"):
        train()
    plain, batches = toy_run(quick(predictor="none"), optimizer=lambda p: MasterWeights(p, lr=3e-3))
    for _ in range(60):
        plain.step(batches)


@pytest.mark.parametrize("predictor", ["none", "ema_nesterov"])
def test_a_batch_left_out_changes_no_buffer(predictor: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    model.register_buffer("mask", torch.zeros(300, 300))
    batches = Batches(model)
    trainer = HybridTrainer(model, torch.optim.AdamW(model.parameters(), lr=1e-2), quick(predictor=predictor))
    for step in range(50):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        kept = list(model.buffers())
        bad = step in (0, 7, 21, 33)
        result = trainer.step(lambda bad=bad: model(torch.full((4, 8), torch.inf)).sum() if bad else batches())
        assert all(a is b for a, b in zip(kept, model.buffers(), strict=True))
        same = all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
        assert same == (result.predicted or "not finite" in (result.event or "")), step
    model.eval()
    assert torch.isfinite(model(torch.randn(4, 8))).all()


def test_a_state_of_another_training_is_refused_before_anything_changes() -> None:
    def trainer(width: int = 16, kind: Any = torch.optim.AdamW, schedule: bool = True) -> HybridTrainer:
        model = toy_model(width=width)
        optimizer = kind(model.parameters(), lr=1e-2)
        return HybridTrainer(
            model, optimizer, quick(), lr_scheduler=LambdaLR(optimizer, lambda _: 1.0) if schedule else None
        )

    mine = trainer()
    batches = Batches(mine.model)
    for _ in range(12):
        mine.step(batches)
    for other, message in (
        (
            trainer(width=17),
            r"parameter 0.weight is \(16, 8\) torch.float32 in group 0 in the checkpoint but \(17, 8\)",
        ),
        (trainer(kind=torch.optim.SGD), "optimizer is AdamW in the checkpoint but SGD here"),
        (trainer(schedule=False), "lr_scheduler is LambdaLR in the checkpoint but none here"),
    ):
        with pytest.raises(CheckpointError, match=message):
            other.load_state_dict(mine.state_dict())
        assert other.phases.steps == 0
        assert not other.optimizer.state


def test_a_closure_that_does_backward_itself_is_told_so() -> None:
    for retained in (False, True):
        trainer, batches = toy_run(quick(predictor="none"))

        def closure(batches: Batches = batches, retained: bool = retained) -> torch.Tensor:
            loss = batches()
            loss.backward(retain_graph=retained)
            return loss

        with pytest.raises(ConfigError, match=r"the closure called backward\(\) itself: it must only return the loss"):
            trainer.step(closure)


def test_parameters_that_cannot_work_are_refused_by_name_and_others_work() -> None:
    embedding = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 1))
    with pytest.raises(ConfigError, match="0 has sparse=True, whose gradients can't be measured: use sparse=False"):
        HybridTrainer(embedding, torch.optim.SGD(embedding.parameters(), lr=0.1), quick())
    nowhere = nn.Linear(3, 3, device="meta")
    with pytest.raises(ConfigError, match="2 parameters, weight among them, are on the meta device"):
        HybridTrainer(nowhere, torch.optim.SGD(nowhere.parameters(), lr=0.1), quick())

    model = nn.ModuleDict({"used": toy_model(), "frozen": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model["frozen"].requires_grad_(False)
    before = flat(model["frozen"]), flat(model["idle"])
    trainer = HybridTrainer(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0), quick())
    batches = Batches(model["used"])
    for _ in range(40):
        trainer.step(batches)
    assert trainer.measures()["jumps"] > 0
    assert torch.equal(before[0], flat(model["frozen"]))
    assert torch.equal(before[1], flat(model["idle"]))


class OwnRate(torch.optim.SGD):
    """Finds its rate itself: its groups say None."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-2)
        self.param_groups[0]["lr"] = None

    def step(self, closure: Any = None) -> None:
        self.param_groups[0]["lr"] = 1e-2
        super().step()
        self.param_groups[0]["lr"] = None


def test_a_rate_that_the_optimizer_finds_itself_cannot_be_followed() -> None:
    with pytest.raises(ConfigError, match=r"lr of parameter group 0 is None, .* couple_lr=False"):
        toy_run(quick(), optimizer=OwnRate)
    trainer, batches = toy_run(quick(couple_lr=False), optimizer=OwnRate)
    for _ in range(40):
        trainer.step(batches)
    assert trainer.measures()["jumps"] > 0


def fp16_run(*, predictor: str = "ema_nesterov", scaler: Any = None, **options: Any) -> tuple[HybridTrainer, Any]:
    own = {"time_constant": 20.0} if predictor == "ema_nesterov" else {}
    trainer, batches = toy_run(quick(predictor=predictor, **own), scaler=scaler, **options)

    def closure() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            prediction = trainer.model(batches.x[:64])
        return ((prediction.float() - batches.y[:64]) ** 2).mean()

    return trainer, closure


def scaler(scale: float = 2.0**10, **options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, **options)


@pytest.mark.parametrize("clip_norm, accumulate", [(None, 1), (0.05, 1), (0.05, 2)])
def test_a_scaled_loss_trains_as_a_plain_loop_with_a_scaler(clip_norm: float | None, accumulate: int) -> None:
    mine = scaler(2.0**20, growth_interval=7)  # overflows at first, and grows into overflows later
    trainer, closure = fp16_run(predictor="none", scaler=mine, clip_norm=clip_norm, accumulate=accumulate)
    twin, loss_of_twin = fp16_run(predictor="none")
    optimizer, theirs = twin.optimizer, scaler(2.0**20, growth_interval=7)
    overflows = 0
    for _ in range(60):
        overflows += "overflow" in (trainer.step(closure).event or "")
        for _ in range(accumulate):
            theirs.scale(loss_of_twin() / accumulate if accumulate > 1 else loss_of_twin()).backward()
        theirs.unscale_(optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(twin.model.parameters(), clip_norm)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert mine.get_scale() == theirs.get_scale()
    assert overflows >= 2
    assert trainer.statistics()["events"]["overflow"] == overflows
    assert torch.equal(flat(trainer.model), flat(twin.model))


@pytest.mark.parametrize("predictor", ["ema_nesterov", "slow_momentum"])
def test_an_overflow_is_no_trouble_and_nothing_is_learnt_from_it(predictor: str) -> None:
    ends = []
    for spoiled in (False, True):
        mine = scaler()
        trainer, closure = fp16_run(predictor=predictor, scaler=mine, total_steps=80)
        for step in range(40):
            if spoiled and not trainer.phases.position.predicted and step in (3, 20):  # after a prediction, too
                state = mine.state_dict()
                mine.load_state_dict(state | {"scale": 2.0**40})
                before, learnt = flat(trainer.model), trainer._cycle.predictor.state_dict()["numbers"].get("since")
                result = trainer.step(closure)
                assert result.event.startswith("overflow: ")
                assert result.level == "normal"
                assert torch.equal(flat(trainer.model), before)
                assert trainer._cycle.predictor.state_dict()["numbers"].get("since") == learnt
                assert mine.get_scale() == 2.0**39
                mine.load_state_dict(state)
                continue
            trainer.step(closure)
        ends.append(trainer)
    assert "overflow" not in ends[0].statistics()["events"]
    assert ends[1].statistics()["events"] == {"overflow": 2}
    assert ends[1].statistics()["jumps"] == ends[0].statistics()["jumps"]


def test_a_loss_that_is_not_finite_is_trouble_whatever_the_scale() -> None:
    trainer, closure = fp16_run(scaler=scaler())
    assert trainer.step(lambda: closure() * torch.inf).event == "skip_batch: loss is not finite"
    low, closure = fp16_run(scaler=scaler(1.0))
    weight = next(low.model.parameters())
    result = low.step(lambda: closure() + (weight - weight.detach()).abs().sum().sqrt())  # 0, with an infinite slope
    assert result.event == "skip_batch: gradient is not finite"


def test_a_scaler_goes_on_from_a_checkpoint() -> None:
    whole, closure = fp16_run(scaler=scaler(2.0**20, growth_interval=7))
    for _ in range(23):
        whole.step(closure)
    state, weights = whole.state_dict(), {name: value.clone() for name, value in whole.model.state_dict().items()}

    state = copy.deepcopy(state)
    for _ in range(30):
        whole.step(closure)
    resumed, again = fp16_run(scaler=scaler())
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(30):
        resumed.step(again)
    assert torch.equal(flat(whole.model), flat(resumed.model))
    assert resumed.state_dict()["parts"]["scale"] == whole.state_dict()["parts"]["scale"]
    without, _ = fp16_run()
    with pytest.raises(CheckpointError, match="scaler is GradScaler in the checkpoint but none here"):
        without.load_state_dict(state)


def test_weights_in_fp16_cannot_be_unscaled() -> None:
    model = toy_model().half()
    with pytest.raises(ConfigError, match="keep the weights in float32"):
        HybridTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1), quick(), scaler=scaler())
    HybridTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1), quick(), scaler=scaler(enabled=False))
