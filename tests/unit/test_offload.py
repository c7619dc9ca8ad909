"""Optimizer state in host memory through Predict: the same run, bit for bit, and the seconds are told."""

import copy
import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from hybrid_toy import flat, quick, toy_run

from hybrid_ray.optim.offload import StateOffload, state_tensors

IN_PREDICT = 17  # steps done, in the quick run, when the state is away


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("changes", [{}, {"correction_interval": 2}, {"predictor": "momentum"}, {"correct_steps": 0}])
def test_a_run_with_offload_ends_with_the_same_bits(changes: dict[str, Any]) -> None:
    ends = []
    for offload in (False, True):
        trainer, batches = toy_run(quick(offload_optimizer=offload, **changes))
        kinds = [trainer.step(batches).predicted for _ in range(60)]
        ends.append(flat(trainer.model))
    assert torch.equal(*ends)
    numbers = trainer.statistics()
    size = sum(tensor.numel() * 4 for tensor in state_tensors(trainer.optimizer) if tensor.dim())
    stretches = sum(now and not before for before, now in pairwise(kinds))
    assert stretches == (numbers["jumps"] * 3 if "correction_interval" in changes else numbers["jumps"]) > 0
    assert numbers["offload"] == {"moved_bytes": stretches * size, "freed_bytes": 0}  # a CPU frees nothing
    assert numbers["part_seconds"]["offload"] > 0.0
    assert "offload" not in toy_run(quick())[0].statistics()


def test_the_state_really_moves_and_its_memory_is_allocated_once() -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(1000)
    optimizer.step()
    offload, moment = StateOffload(optimizer, torch.device("cpu")), optimizer.state[parameter]["exp_avg"]
    places, values = [], moment.clone()
    for _ in range(3):
        at_home = moment.data_ptr()
        offload.leave()
        offload.leave()  # nothing to do
        places.append(moment.data_ptr())
        assert moment.data_ptr() != at_home
        assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], values)
        offload.come_back()
        assert moment.data_ptr() not in places
    assert len(set(places)) == 1
    assert optimizer.state[parameter]["exp_avg"] is moment
    assert offload.moved_bytes == 3 * 8000


def test_a_checkpoint_made_in_predict_is_whole() -> None:
    """As SIGTERM makes one: the state is on the host, and the run goes on bit for bit."""
    config = quick(offload_optimizer=True)
    whole, batches = toy_run(config)
    for _ in range(IN_PREDICT):
        result = whole.step(batches)
    assert result.predicted
    moments = [tensor.clone() for tensor in state_tensors(whole.optimizer)]
    state, weights, taken = through_a_file(whole.state_dict()), copy.deepcopy(whole.model.state_dict()), batches.taken
    resumed, again = toy_run(config)
    for _ in range(IN_PREDICT - 1):
        resumed.step(again)  # its own state is on the host when another is loaded over it
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    again.taken = taken
    for mine, saved in zip(state_tensors(resumed.optimizer), moments, strict=True):
        assert torch.equal(mine, saved)
    for _ in range(30):
        whole.step(batches)
        resumed.step(again)
    assert torch.equal(flat(resumed.model), flat(whole.model))
    size = sum(tensor.numel() * 4 for tensor in moments if tensor.dim())
    moved = [trainer.statistics()["offload"]["moved_bytes"] for trainer in (whole, resumed)]
    assert moved[1] == moved[0] + size  # it was loaded to the device, and left once more


def test_parameters_that_change_in_predict_find_their_state() -> None:
    trainer, batches = toy_run(quick(offload_optimizer=True))
    for _ in range(IN_PREDICT):
        trainer.step(batches)
    trainer.model[0].bias.requires_grad_(False)
    for _ in range(30):
        trainer.step(batches)
    assert flat(trainer.model).isfinite().all()
