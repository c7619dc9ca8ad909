"""A run stopped anywhere goes on bit for bit."""

import copy
import io
from typing import Any

import pytest
import torch
from hybrid_toy import Batches, flat, quick, toy_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import CheckpointError
from hybrid_ray.method import HybridTrainer
from hybrid_ray.run_result import Replay

STEPS = 45


def start(config: HybridConfig, replay: Replay | None) -> tuple[HybridTrainer, Batches]:
    model = toy_model()
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[2].parameters(), "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 100)
    return HybridTrainer(model, optimizer, config, lr_scheduler=schedule, total_steps=STEPS, replay=replay), Batches(
        model
    )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint file gives back: nothing that weights_only refuses."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "predictor": st.sampled_from(["none", "snoo", "linear_fit", "momentum", "zero", "random", "reversed"]),
        "correction_interval": st.integers(1, 3),
        "correct_steps": st.integers(0, 3),
        "full_steps": st.integers(1, 4),
        "buffer_dtype": st.just("bfloat16"),
        "buffer_device": st.just("host"),
        "residual_feedback": st.sampled_from([0.0, 0.5]),
        "horizon_mode": st.just("scaled"),
        "confidence_threshold": st.just(0.2),
        "off_fraction": st.just(0.25),
    },
)
RECORD = Replay(phases="WWWFFFFPPPMPPCCFFPPPCCCFFF", norms=((0.1, 0.2), (0.05, 0.1)))


@given(changes=CHANGES, stop=st.integers(0, STEPS))
@settings(max_examples=40, deadline=None)
def test_a_run_stopped_in_any_phase_goes_on_bit_for_bit(changes: dict[str, Any], stop: int) -> None:
    config = quick(**changes)
    replay = RECORD if config.predictor.name in ("random", "reversed") else None
    whole, batches = start(config, replay)
    weights = state = None
    results = []
    for step in range(STEPS):
        if step == stop:
            weights = copy.deepcopy(whole.model.state_dict())
            state, taken = through_a_file(whole.state_dict()), batches.taken
        results.append(whole.step(batches))
    if state is None:
        return
    resumed, batches = start(config, replay)
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    batches.taken = taken
    assert [resumed.step(batches) for _ in range(stop, STEPS)] == results[stop:]
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert resumed.replay_record() == whole.replay_record()
    clocks = {"part_seconds", "phase_seconds"}
    for name, value in whole.statistics().items():
        assert name in clocks or resumed.statistics()[name] == value, name


def test_what_was_seen_of_memory_and_of_jumps_taken_back_is_kept() -> None:
    trainer, _ = start(quick(), None)
    trainer.stats.begin_jump([1.0, 1.0])
    trainer.stats.withdraw_jump(None)
    state = trainer.state_dict()
    peaks = {"full": {"allocated": 7, "reserved": 9}}  # as on a GPU
    state["parts"]["stats"]["memory"] = peaks
    resumed, _ = start(quick(), None)
    resumed.load_state_dict(through_a_file(state))
    assert resumed.statistics()["memory"] == peaks
    assert resumed.state_dict()["parts"]["stats"]["memory"] == peaks
    assert resumed.statistics()["false_accept_rate"] == 1.0


def test_other_settings_are_refused_by_name() -> None:
    trainer, _ = start(quick(), None)
    other, _ = start(quick(gain=0.5, full_steps=3), None)
    with pytest.raises(CheckpointError, match="full_steps, predictor"):
        other.load_state_dict(trainer.state_dict())


def test_a_restored_run_can_still_be_rolled_back() -> None:
    trainer, batches = start(quick(), None)
    for _ in range(15):
        trainer.step(batches)
    before = flat(trainer.model)
    for _ in range(3):
        trainer.step(batches)
    resumed, _ = start(quick(), None)
    resumed.model.load_state_dict(trainer.model.state_dict())
    resumed.load_state_dict(through_a_file(trainer.state_dict()))
    resumed._cycle.withdraw(keep=True, loss=1.0)
    torch.testing.assert_close(flat(resumed.model), before, rtol=1e-5, atol=1e-6)
