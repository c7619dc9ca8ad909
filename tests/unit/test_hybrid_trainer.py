"""What a user sees of the hybrid trainer: it trains, predicts without gradients, and refuses what can't work."""

import math

import pytest
import torch
from hybrid_toy import Batches, flat, quick, toy_model, toy_run

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import ConfigError, Diverged, UnsupportedOptimizer
from hybrid_ray.method import HybridTrainer, Level, Phase
from hybrid_ray.method.guard.divergence import Assessment, Recovery
from hybrid_ray.run_result import Replay


def test_the_seeds_quick_run_has_the_seeds_phase_shares() -> None:
    trainer, batches = toy_run(quick())
    for _ in range(50):
        trainer.step(batches)
    assert trainer.statistics()["phase_shares"] == {"warmup": 0.1, "full": 0.2, "predict": 0.4, "correct": 0.3}
    assert trainer.replay_record().phases == "W" * 5 + "F" * 10 + "PPPPPCCCCC" * 3 + "PPPPP"


@pytest.mark.parametrize("clip_norm, accumulate", [(0.1, 1), (None, 1), (0.5, 3)])
def test_without_prediction_it_is_the_plain_loop_bit_for_bit(clip_norm: float | None, accumulate: int) -> None:
    trainer, batches = toy_run(quick(predictor="none"), clip_norm=clip_norm, accumulate=accumulate)
    model = toy_model()
    plain, optimizer = Batches(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        result = trainer.step(batches)
        losses = []
        for _ in range(accumulate):
            loss = plain() / accumulate if accumulate > 1 else plain()
            loss.backward()
            losses.append(loss.item())
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert result.loss == pytest.approx(sum(losses), rel=1e-6)
        assert result.grad_norm == norm.item()
    assert torch.equal(flat(trainer.model), flat(model))
    assert trainer.cycle_done


def test_predicted_steps_move_the_weights_take_no_batch_and_leave_the_optimizer_alone() -> None:
    trainer, batches = toy_run(quick())
    for _ in range(15):
        trainer.step(batches)
    taken, weights = batches.taken, flat(trainer.model)
    moments = [state["exp_avg"].clone() for state in trainer.optimizer.state.values()]
    steps = [trainer.step(batches) for _ in range(5)]
    assert all(s.predicted and s.loss is None and s.phase is Phase.PREDICT for s in steps)
    assert batches.taken == taken == 15
    moved = (flat(trainer.model) - weights).norm().item()
    assert moved == pytest.approx(trainer.replay_record().norms[0][0], rel=1e-4)
    for state, before in zip(trainer.optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], before)
        assert state["step"] == 15


@pytest.mark.parametrize("predictor", ["ema_nesterov", "snoo", "linear_fit", "momentum", "zero"])
def test_every_predictor_trains_and_the_schedule_counts_nominal_steps(predictor: str) -> None:
    model = toy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 150)
    trainer = HybridTrainer(model, optimizer, quick(predictor=predictor), lr_scheduler=schedule)
    batches = Batches(model)
    losses = [trainer.step(batches).loss for _ in range(120)]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1.0 - 120 / 150))
    assert losses[-6] is None or losses[-6] < 0.1 * losses[0]
    assert trainer.statistics()["predicted_steps"] == 55


def test_confidence_is_measured_before_anything_is_predicted() -> None:
    trainer, batches = toy_run(quick(confidence_threshold=1.0, explore=0.0))
    found = [trainer.step(batches).confidence for _ in range(35)]
    assert found[0] == 0.0
    assert 0.0 < found[-1] < 1.0
    assert trainer.statistics()["predicted_steps"] == 0


@pytest.mark.parametrize("full, correct, horizon, interval", [(1, 0, 1, 0), (1, 1, 3, 1), (2, 0, 4, 2), (5, 0, 3, 0)])
def test_short_cycles_are_as_legal_as_long_ones(full: int, correct: int, horizon: int, interval: int) -> None:
    config = quick(
        full_steps=full, correct_steps=correct, prediction_horizon=horizon, correction_interval=interval, gain=0.3
    )
    trainer, batches = toy_run(config)
    losses = [trainer.step(batches).loss for _ in range(90)]
    assert trainer.statistics()["predicted_steps"] > 15
    assert sum(loss for loss in losses[-20:] if loss is not None) / 20 < 0.1


def test_cycle_done_is_never_right_after_a_prediction() -> None:
    trainer, batches = toy_run(quick())
    done = []
    for _ in range(40):
        trainer.step(batches)
        done.append(trainer.cycle_done)
    assert [step for step, flag in enumerate(done, start=1) if flag] == [1, 2, 3, 4, 5, 15, 25, 35]


@pytest.mark.parametrize("replayed", [False, True])
def test_the_last_part_is_not_predicted_and_no_cycle_ends_in_the_middle_of_a_prediction(replayed: bool) -> None:
    config = quick(prediction_horizon=20, correction_interval=9, off_fraction=0.25)  # the last quarter: from step 64 on
    record = Replay(phases="W" * 5 + "F" * 10 + "PPPMPPP", norms=((0.1,),)) if replayed else None
    trainer, batches = toy_run(config, total_steps=84, replay=record)
    done = []
    for _ in range(84):
        trainer.step(batches)
        done.append(trainer.cycle_done)
    phases = trainer.replay_record().phases
    assert "P" in phases
    assert "M" in phases
    assert max(phases.rfind("P"), phases.rfind("C")) < 63
    assert not any(flag for letter, flag in zip(phases, done, strict=True) if letter in "PM")
    assert all(done[63:])


def test_predictions_shrink_with_the_learning_rate() -> None:
    norms = {}
    for couple in (True, False):
        model = toy_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 if step >= 14 else 1.0)
        trainer = HybridTrainer(model, optimizer, quick(couple_lr=couple), lr_scheduler=schedule)
        batches = Batches(model)
        for _ in range(16):
            trainer.step(batches)
        norms[couple] = trainer.replay_record().norms[0][0]
    assert norms[True] == pytest.approx(0.1 * norms[False], rel=1e-4)


def test_a_gradient_that_points_back_after_a_jump_is_told_as_overshoot_and_lowers_the_agreement_score() -> None:
    found = {}
    for gain in (0.5, 60.0):  # down a slope that levels out at 0: the long jump lands beyond
        weight = torch.nn.Parameter(torch.full((100,), 10.0))
        trainer = HybridTrainer(
            torch.nn.ParameterList([weight]), torch.optim.SGD([weight], lr=0.01), quick(gain=gain, divergence_sigma=1e9)
        )
        for _ in range(20):
            trainer.step(lambda weight=weight: 0.5 * weight.square().sum())
        before = trainer._cycle.score.value
        event = trainer.step(lambda weight=weight: 0.5 * weight.square().sum()).event
        found[gain] = (event, trainer.statistics()["overshoots"], trainer._cycle.score.value / before)
    assert found[0.5] == (None, 0, 1.0)
    assert found[60.0] == ("overshoot", 1, pytest.approx(0.75))


# --- recoveries


class Oracle:
    """Stands in for the monitor's judgement at one real step, to see each recovery carried out."""

    def __init__(self, trainer: HybridTrainer, at: int, recovery: Recovery) -> None:
        self.inner, self.trainer, self.at, self.recovery = trainer.health.monitor, trainer, at, recovery

    def observe_real(self, loss: float, norm: float, *, after_prediction: bool) -> Assessment:
        return self.assess()

    def assess(self) -> Assessment:
        if self.trainer.phases.steps + 1 == self.at:
            return Assessment(level=Level.CRITICAL, reasons=("because",), recovery=self.recovery)
        return Assessment(level=Level.NORMAL, reasons=(), recovery=Recovery.CONTINUE)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def recover(recovery: Recovery, at: int = 22, **changes):
    """Run up to a recovery in Correct (steps 21-25). Returns trainer, result, weights before, and what a jump moved."""
    trainer, batches = toy_run(quick(**changes))
    trainer.health.monitor = Oracle(trainer, at, recovery)
    jump = torch.zeros_like(flat(trainer.model))
    result = None
    for _ in range(at):
        before = flat(trainer.model)
        result = trainer.step(batches)
        if result.predicted:
            jump += flat(trainer.model) - before
    return trainer, batches, result, before, jump


@pytest.mark.parametrize("recovery", list(Recovery))
def test_each_recovery_is_told_and_what_follows_is_as_the_table_says(recovery: Recovery) -> None:
    if recovery is Recovery.ABORT:
        with pytest.raises(Diverged, match="step 22: because"):
            recover(recovery)
        return
    trainer, batches, result, before, jump = recover(recovery)
    after = flat(trainer.model)
    expected_event = None if recovery is Recovery.CONTINUE else f"{recovery}: because"
    assert result.event == expected_event
    follows = trainer.step(batches).phase
    goes_on = recovery in (Recovery.CONTINUE, Recovery.REDUCE_PREDICT_RATIO)
    assert follows is (Phase.CORRECT if goes_on else Phase.FULL)
    if recovery is Recovery.SKIP_BATCH:
        assert torch.equal(after, before)
    elif recovery is Recovery.ROLLBACK:
        torch.testing.assert_close(after, before - jump, rtol=1e-4, atol=1e-6)
        assert trainer.replay_record().norms[-1] == (0.0,)
    else:
        assert not torch.equal(after, before)


def test_reduce_predict_ratio_shortens_the_next_prediction_and_wears_off() -> None:
    trainer, batches, *_ = recover(Recovery.REDUCE_PREDICT_RATIO, prediction_horizon=6, correct_steps=5)
    for _ in range(60):
        trainer.step(batches)
    runs = [len(run) for run in "".join(c if c == "P" else " " for c in trainer.replay_record().phases).split()]
    assert runs[:4] == [6, 3, 6, 6]


def test_raise_threshold_asks_for_more_confidence_for_a_while() -> None:
    trainer, batches, *_ = recover(Recovery.RAISE_THRESHOLD, confidence_threshold=0.0)
    assert trainer.health.backoff.threshold(0.0) == 0.1
    for _ in range(60):
        trainer.step(batches)
    assert trainer.health.backoff.threshold(0.0) < 0.1


def test_reset_predictor_forgets_the_average_but_goes_on_learning() -> None:
    trainer, batches, *_ = recover(Recovery.RESET_PREDICTOR)
    assert trainer._cycle.predictor.weight_sum == 0.0
    for _ in range(9):
        trainer.step(batches)
    assert trainer.statistics()["confidence"] > 0.0  # what is known about jumps stays
    for _ in range(15):
        result = trainer.step(batches)
    assert result.confidence > 0.0


def test_a_predictor_that_was_reset_for_its_error_is_followed_by_real_steps_and_the_confidence_is_not_forgotten() -> (
    None
):
    trainer, batches = toy_run(quick(confidence_threshold=0.01, explore=0.0))
    oracle = Oracle(trainer, 25, Recovery.RESET_PREDICTOR)  # the end of the first cycle: its prediction is judged
    oracle.observe_real = trainer.health.monitor.observe_real
    oracle.observe_prediction = lambda error: oracle.assess()
    trainer.health.monitor = oracle
    results = [trainer.step(batches) for _ in range(35)]
    assert results[23].confidence > 0.01
    assert results[24].event == "reset_predictor: because"
    assert trainer.replay_record().phases.endswith("PPPPPCCCCC" + "F" * 10)
    assert all(result.confidence > 0.01 for result in results[24:])


def test_a_rolled_back_prediction_was_accepted_falsely() -> None:
    assert recover(Recovery.ROLLBACK)[0].statistics()["false_accept_rate"] == 1.0
    trainer, batches, *_ = recover(Recovery.CONTINUE)
    [trainer.step(batches) for _ in range(3)]
    assert trainer.statistics()["false_accept_rate"] == 0.0


ARMS = {
    "baseline": (quick(predictor="none"), None),
    "placebo": (quick(predictor="zero"), Replay(phases="W" * 5 + "F" * 10 + "PPPPPCCCCC", norms=((0.1,),))),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("recovery", [recovery for recovery in Recovery if recovery is not Recovery.CONTINUE])
def test_an_arm_that_decides_nothing_leaves_bad_batches_out_and_is_only_advised_of_the_rest(
    arm: str, recovery: Recovery
) -> None:
    config, replay = ARMS[arm]
    trainer, batches = toy_run(config, replay=replay)
    trainer.health.monitor = Oracle(trainer, 12, recovery)  # in Full: nothing has been predicted
    for _ in range(11):
        trainer.step(batches)
    before = flat(trainer.model)
    result = trainer.step(batches)
    skipped = recovery in (Recovery.SKIP_BATCH, Recovery.ROLLBACK)
    assert result.event == ("skip_batch: because" if skipped else f"advised {recovery}: because")
    assert torch.equal(flat(trainer.model), before) == skipped
    if replay is not None:
        [trainer.step(batches) for _ in range(13)]
        assert trainer.replay_record().phases == replay.phases


def test_a_spike_is_left_out_alike_in_every_arm() -> None:
    """A hybrid run that never dares to predict is the baseline, to the bit, bad batches included."""
    found = []
    for config in (quick(predictor="none"), quick(confidence_threshold=1.0, explore=0.0)):
        trainer, batches = toy_run(config)
        for step in range(1, 61):
            result = trainer.step(lambda size=1e4 if step == 40 else 1.0, batches=batches: size * batches())
            assert (result.event or "").startswith("skip_batch: ") == (step == 40)
        found.append(flat(trainer.model))
        assert trainer.statistics()["predicted_steps"] == 0
    assert torch.equal(*found)


def test_rollback_in_a_micro_correction_takes_back_the_part_that_was_applied() -> None:
    trainer, _, result, before, jump = recover(Recovery.ROLLBACK, at=18, correction_interval=2)
    assert result.phase is Phase.CORRECT
    torch.testing.assert_close(flat(trainer.model), before - jump, rtol=1e-4, atol=1e-6)


def test_falling_back_inside_a_prediction_is_recorded_as_the_part_that_was_applied() -> None:
    trainer, batches, _, _, jump = recover(Recovery.FORCE_FULL, at=18, correction_interval=2)
    assert trainer.replay_record().norms[0][0] == pytest.approx(jump.norm().item(), rel=1e-4)
    trainer.step(batches)
    assert trainer.replay_record().phases.endswith("PPMF")


# --- numbers that are not finite


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("predictor", ["none", "ema_nesterov"])
def test_a_number_that_is_not_finite_is_refused_and_if_it_comes_back_the_run_has_diverged(
    what: str, predictor: str
) -> None:
    trainer, batches = toy_run(quick(predictor=predictor), lr_scheduler=None)

    def poisoned() -> torch.Tensor:
        loss = batches()
        if what == "loss":
            return loss * math.nan
        zero = loss - loss.detach()
        return loss.detach() + zero.abs().sqrt()  # finite, with a gradient that is not

    weights = flat(trainer.model)
    first = trainer.step(poisoned)  # the very first step
    assert first.event is not None
    assert "not finite" in first.event
    assert torch.equal(flat(trainer.model), weights)
    assert not trainer.optimizer.state
    trainer.step(batches)
    assert not torch.equal(flat(trainer.model), weights)
    with pytest.raises(Diverged, match="not finite"):
        [trainer.step(poisoned) for _ in range(30)]
    assert torch.isfinite(flat(trainer.model)).all()


def test_a_first_step_that_is_refused_does_not_upset_the_schedule() -> None:
    model = toy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    trainer = HybridTrainer(model, optimizer, quick(), lr_scheduler=schedule)
    batches = Batches(model)
    trainer.step(lambda: batches() * math.nan)
    trainer.step(batches)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 3)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_predicted_update_that_is_not_finite_never_reaches_the_weights(recorded: bool) -> None:
    replay = Replay(phases="W" * 5 + "F" * 10 + "P" * 5, norms=((1.0,),)) if recorded else None
    trainer, batches = toy_run(quick(), replay=replay)
    events = []
    for step in range(1, 31):
        if step == 12:
            trainer._cycle.predictor.average.tensors[0][0, 0] = math.inf
        events.append(trainer.step(batches).event)
    assert torch.isfinite(flat(trainer.model)).all()
    assert any(event and "update is not finite" in event for event in events)


# --- what a user may hand in


def test_a_share_of_a_run_whose_length_is_not_known_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"off_fraction is 0.24 \(the default of ema_nesterov\), .* give HybridTrainer"
    ):
        toy_run(HybridConfig())
    with pytest.raises(ConfigError, match=r"first_fraction is 0\.1, the first share"):
        toy_run(quick(first_fraction=0.1))
    toy_run(HybridConfig(), total_steps=100)
    toy_run(HybridConfig(predictor="none"))


def test_every_problem_of_the_arguments_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        toy_run(quick(), total_steps=0, accumulate=0, clip_norm=-1.0)
    assert [problem.split()[0] for problem in caught.value.problems] == ["total_steps", "accumulate", "clip_norm"
    ]  # fmt: skip


def test_every_problem_of_the_settings_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        HybridConfig(full_steps=0, warmup_steps=-1, predictor="randum")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="a control: give it the replay"):
        toy_run(HybridConfig(predictor="random"))


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, list])
def test_an_optimizer_that_cannot_be_stepped_alone_is_refused(optimizer) -> None:
    with pytest.raises(UnsupportedOptimizer):
        toy_run(quick(), optimizer=optimizer)


@pytest.mark.parametrize(
    "kind", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD", "Rprop"]
)
def test_any_first_order_optimizer_will_do(kind: str) -> None:
    trainer, batches = toy_run(quick(), optimizer=lambda p: getattr(torch.optim, kind)(p, lr=1e-3))
    for _ in range(30):
        trainer.step(batches)
    assert trainer.statistics()["predicted_steps"] == 10


def test_a_schedule_that_needs_losses_is_refused() -> None:
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ConfigError, match="ReduceLROnPlateau"):
        HybridTrainer(model, optimizer, quick(), lr_scheduler=plateau)


@pytest.mark.parametrize(
    "closure, match",
    [
        (lambda model: model(torch.ones(3, 8)), r"shape \(3, 1\)"),
        (lambda model: 0.5, "float"),
        (lambda model: None, "NoneType"),
        (lambda model: torch.tensor(1.0), "no gradient"),
        (lambda model: torch.ones((), requires_grad=True) * 2.0, "no parameter"),
    ],
)
def test_a_closure_without_a_usable_loss_is_a_clear_error_and_nothing_moves(closure, match: str) -> None:
    trainer, batches = toy_run(quick())
    before = flat(trainer.model)
    with pytest.raises(ConfigError, match=match):
        trainer.step(lambda: closure(trainer.model))
    assert torch.equal(flat(trainer.model), before)
    assert trainer.step(batches).phase is Phase.WARMUP
    assert trainer.statistics()["steps"] == 1


def test_nothing_to_train_is_a_clear_error() -> None:
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="unfreeze"):
        HybridTrainer(model, optimizer, quick())


def test_frozen_parameters_stay_and_unused_ones_are_no_trouble() -> None:
    model = toy_model()
    model[0].weight.requires_grad_(False)
    spare = torch.nn.Parameter(torch.ones(3))  # never in the loss
    optimizer = torch.optim.AdamW([*model.parameters(), spare], lr=1e-2, weight_decay=0.0)
    trainer, batches = HybridTrainer(model, optimizer, quick()), Batches(model)
    frozen = model[0].weight.clone()
    for _ in range(40):
        trainer.step(batches)
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(spare, torch.ones(3))
    assert trainer.statistics()["predicted_steps"] > 0


def test_tied_parameters_are_moved_once() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x))).sum(1, keepdim=True)

    model = Tied()
    trainer = HybridTrainer(model, torch.optim.SGD(model.parameters(), lr=0.01), quick())
    batches = Batches(model)
    for _ in range(15):
        trainer.step(batches)
    before = model.a.weight.clone()
    for _ in range(5):
        trainer.step(batches)
    moved = (model.a.weight - before).norm().item()
    assert moved == pytest.approx(trainer.replay_record().norms[0][0], rel=1e-4)
    assert model.a.weight is model.b.weight


def test_several_groups_each_have_their_own_rate_and_norm() -> None:
    first, second = (torch.nn.Parameter(torch.zeros(100)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1e-2}, {"params": [second], "lr": 1e-4}])
    halved = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.5 if step >= 15 else 1.0])
    trainer = HybridTrainer(torch.nn.ParameterList([first, second]), optimizer, quick(), lr_scheduler=halved)
    for _ in range(16):  # the same gradient in both: ten real steps each move by the rate x 10
        trainer.step(lambda: first.sum() + second.sum())
    assert trainer.replay_record().norms[0] == pytest.approx((5 * 1e-2 * 10, 5 * 0.5 * 1e-4 * 10), rel=1e-4)


@pytest.mark.parametrize("step", [3, 12, 17, 22])  # in each phase
@pytest.mark.parametrize("change", ["add", "freeze", "resize"])
def test_parameters_that_change_between_steps_start_the_predictor_over(step: int, change: str) -> None:
    trainer, batches = toy_run(quick())
    for _ in range(step):
        trainer.step(batches)
    extra = torch.nn.Parameter(torch.zeros(4))
    if change == "add":
        trainer.optimizer.add_param_group({"params": [extra]})
    elif change == "freeze":
        trainer.model[0].weight.requires_grad_(False)
    else:
        wide = toy_model(1, width=32)
        for old, new in zip(trainer.model.parameters(), wide.parameters(), strict=True):
            old.data = new.data
        trainer.optimizer.state.clear()
    result = trainer.step(batches)
    assert result.event is not None
    assert "parameters changed" in result.event
    assert not result.predicted
    for _ in range(60):
        result = trainer.step(batches)
    assert trainer.statistics()["predicted_steps"] > 15
    assert torch.isfinite(flat(trainer.model)).all()


# --- replay


def test_a_replayed_run_is_the_run() -> None:
    trainer, batches = toy_run(quick(confidence_threshold=0.2, correction_interval=2))
    for _ in range(90):
        trainer.step(batches)
    record = trainer.replay_record()
    again, batches = toy_run(quick(confidence_threshold=1.0, correction_interval=2), replay=record)
    for _ in range(90):
        again.step(batches)
    assert "M" in record.phases
    assert again.replay_record().phases == record.phases
    torch.testing.assert_close(flat(again.model), flat(trainer.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predictor", ["zero", "random", "reversed"])
def test_controls_follow_the_phases_and_move_as_far(predictor: str) -> None:
    trainer, batches = toy_run(quick())
    for _ in range(50):
        trainer.step(batches)
    record = trainer.replay_record()
    control, batches = toy_run(quick(predictor=predictor), replay=record)
    distance = 0.0
    for _ in range(50):
        before = flat(control.model)
        if control.step(batches).predicted:
            distance += (flat(control.model) - before).norm().item()
    assert control.replay_record().phases == record.phases
    expected = 0.0 if predictor == "zero" else sum(norms[0] for norms in record.norms)
    assert distance == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("norms", [(), ((1.0, 2.0),)])
def test_a_replay_that_does_not_fit_is_refused(norms: tuple) -> None:
    with pytest.raises(ConfigError, match="the replay has"):
        toy_run(quick(), replay=Replay(phases="FFPPC", norms=norms))


def test_displacement_ratio_says_how_much_farther_the_run_went_than_its_real_steps() -> None:
    weight = torch.nn.Parameter(torch.zeros(100))
    config = quick(gain=2.0, warmup_steps=0, couple_lr=False)
    trainer = HybridTrainer(torch.nn.ParameterList([weight]), torch.optim.SGD([weight], lr=0.1), config)
    for _ in range(40):  # F10 P5 C5 P5 C5 P5 C5: 25 real steps of one length, 15 predicted ones twice as long
        trainer.step(weight.sum)
    assert trainer.statistics()["displacement_ratio"] == pytest.approx((25 + 2 * 15) / 25, rel=1e-3)
