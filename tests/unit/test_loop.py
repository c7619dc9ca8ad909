"""The training loop: what it trains, what it counts, how it ends."""

import gc
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from micro_runs import CYCLES, DATA, Listener, micro_run

from hybrid_ray.config import HybridConfig
from hybrid_ray.data import BatchSampler, heldout_batches, prepare_text
from hybrid_ray.errors import ConfigError, TrialOutOfMemory
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer, build_schedule
from hybrid_ray.run_result import RunResult, StepRecord
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.loop import train
from hybrid_ray.training.step_costs import middle_mean


def losses(listener: Listener) -> list[float]:
    return [evaluation.loss for evaluation in listener.evaluations]


def test_a_baseline_is_a_plain_pytorch_loop() -> None:
    run = micro_run(steps=12, evaluations=1)
    listener = Listener()
    train(run, reporter=listener)

    corpus = prepare_text(run.data)
    torch.manual_seed(run.seed)
    model = build_model(run.model, vocab_size=corpus.vocab_size, sequence_length=32)
    optimizer = build_optimizer(model, run.train)
    schedule = build_schedule(optimizer, run.train)
    sampler = BatchSampler(corpus.train, batch_size=8, sequence_length=32, seed=run.seed)
    for record in listener.steps:
        assert record.learning_rate == schedule.get_last_lr()[0]
        loss = model(*sampler.next())
        assert record.loss == pytest.approx(loss.item(), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert record.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        batches = list(heldout_batches(corpus.heldout["val"], batch_size=1, sequence_length=32))
        expected = sum(model(x, y).item() for x, y in batches) / len(batches)
    assert losses(listener)[-1] == pytest.approx(expected, rel=1e-6)


def test_calibration_leaves_no_trace() -> None:
    short, long = Listener(), Listener()
    train(micro_run(hybrid=CYCLES, dropout=0.1, calibration_steps=5), reporter=short)
    train(micro_run(hybrid=CYCLES, dropout=0.1, calibration_steps=9), reporter=long)
    assert losses(short) == losses(long)
    assert [record.loss for record in short.steps] == [record.loss for record in long.steps]


def test_looking_leaves_no_trace() -> None:
    """Evaluations neither train nor draw random numbers."""
    often, once = Listener(), Listener()
    train(micro_run(dropout=0.1, evaluations=8), reporter=often)
    train(micro_run(dropout=0.1, evaluations=1), reporter=once)
    assert losses(often)[-1] == losses(once)[-1]


def test_seeds_change_weights_and_data() -> None:
    first, second = Listener(), Listener()
    train(micro_run(steps=10, evaluations=1), reporter=first)
    train(micro_run(steps=10, evaluations=1, seed=1), reporter=second)
    assert first.steps[0].loss != second.steps[0].loss


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts = Listener(), Listener()
    train(micro_run(steps=20), reporter=whole)
    result = train(micro_run(steps=20, micro_batch_size=2), reporter=parts)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert result.tokens == {"gradient": 20 * 8 * 32, "forward_only": 0}


def test_accounts_of_a_hybrid_run() -> None:
    run = micro_run(hybrid=CYCLES, steps=60)
    listener = Listener()
    result = train(run, reporter=listener)
    predicted = [record for record in listener.steps if record.predicted]
    assert result.status == "finished"
    assert (result.steps, result.predicted_steps) == (60, len(predicted))
    assert len(predicted) >= 9
    assert result.real_steps == 60 - len(predicted)
    assert result.tokens["gradient"] == result.real_steps * 8 * 32
    assert all(record.loss is None for record in predicted)
    assert result.phase_steps["predict"] == len(predicted)
    assert sum(result.phase_seconds.values()) == pytest.approx(result.train_seconds)
    assert sum(record.seconds for record in listener.steps) == pytest.approx(result.train_seconds)
    assert sum(result.part_seconds.values()) <= result.train_seconds
    plain = sum(result.part_seconds[part] for part in ("data", "forward", "backward", "optimizer"))
    assert result.time == pytest.approx(result.real_steps * result.train_seconds / plain)
    assert result.time > result.real_steps  # what the method does beside its real steps counts
    assert result.curve[-1].time == pytest.approx(result.time)  # told in the same unit
    assert len(result.replay.phases) == 60
    assert {"setup", "calibration", "evaluation"} <= set(result.other_seconds)


def test_evaluations_come_right_after_a_cycle_and_at_the_end() -> None:
    run = micro_run(hybrid=CYCLES, steps=60, evaluations=6)
    listener = Listener()
    result = train(run, reporter=listener)
    phases = {record.step: record.phase for record in listener.steps}
    steps = [evaluation.step for evaluation in listener.evaluations]
    assert steps[-1] == 60
    assert all(phases[step] in ("warmup", "full", "correct") for step in steps)
    late = [step - point for step, point in zip(steps, run.train.evaluation_steps, strict=True)]
    assert 0 <= min(late) <= max(late) < CYCLES.cycle_steps
    assert result.curve == tuple(listener.evaluations)
    assert result.heldout["val"].loss == result.curve[-1].loss
    assert result.heldout["val"].tokens == result.heldout["test"].tokens


@pytest.mark.parametrize("status", ["stopped", "diverged"])
def test_a_reporter_ends_the_run(status: str) -> None:
    listener = Listener({2: status})
    result = train(micro_run(), reporter=listener)
    assert result.status == status
    assert result.steps == 20
    assert result.heldout == {}


def test_numbers_that_are_not_finite_end_in_diverged() -> None:
    result = train(micro_run(learning_rate=1e12, evaluations=1))
    assert result.status == "diverged"
    assert result.error
    assert result.steps < 40
    assert all(math.isfinite(evaluation.loss) for evaluation in result.curve)


def test_a_heldout_loss_that_is_not_finite_is_divergence() -> None:
    result = train(micro_run(learning_rate=1e12, evaluations=40))
    assert result.status == "diverged"
    assert "held-out loss" in (result.error or "")


def test_memory_that_is_not_there() -> None:
    class Greedy(Listener):
        def step(self, record: StepRecord) -> None:
            torch.empty(2**60)

    with pytest.raises(TrialOutOfMemory, match="micro_batch_size"):
        train(micro_run(), reporter=Greedy())


@pytest.mark.parametrize(
    "run, said",
    [
        pytest.param(
            micro_run(device="cuda"),
            "sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (micro_run(workers=2), "workers: 2"),
        (replace(micro_run(), replay="missing/result.json"), "missing/result.json"),
    ],
)
def test_what_is_not_there_is_said_at_once(run, said) -> None:
    with pytest.raises(ConfigError, match=said):
        train(run)


def test_bf16_trains_as_well() -> None:
    half, full = train(micro_run(precision="bf16")), train(micro_run())
    assert half.curve[-1].loss == pytest.approx(full.curve[-1].loss, rel=0.02)
    assert half.curve[-1].loss != full.curve[-1].loss


def test_a_run_directory(tmp_path: Path) -> None:
    run = micro_run(hybrid=CYCLES)
    result = train(run, directory=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"code.json", "run.json", "steps.parquet", "result.json"}
    stored = RunResult.from_dict(read_json(tmp_path / "result.json"))
    assert json.dumps(stored.as_dict()) == json.dumps(result.as_dict())
    assert (stored.curve, stored.replay, stored.heldout) == (result.curve, result.replay, result.heldout)
    assert json.loads((tmp_path / "run.json").read_text())["train"]["steps"] == 40
    steps = pd.read_parquet(tmp_path / "steps.parquet")
    assert list(steps["step"]) == list(range(1, 41))
    assert steps["seconds"].sum() == pytest.approx(result.train_seconds)


def test_a_control_replays_a_run(tmp_path: Path) -> None:
    result = train(micro_run(hybrid=CYCLES, steps=60), directory=tmp_path)
    placebo = replace(
        micro_run(hybrid=replace(CYCLES, predictor="zero"), steps=60), replay=str(tmp_path / "result.json")
    )
    assert train(placebo).replay.phases == result.replay.phases


def test_two_runs_on_one_machine_have_one_fingerprint() -> None:
    first, second = train(micro_run(steps=10)), train(micro_run(steps=12, seed=3))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint["corpus"] == prepare_text(DATA).fingerprint
    other = machine(micro_run(threads=2), torch.device("cpu"))
    assert other["hardware"] != first.fingerprint["hardware"]


def test_the_middle_mean_is_not_moved_by_a_few_bad_steps() -> None:
    assert middle_mean([1.0, 2.0, 3.0, 4.0]) == 2.5
    assert middle_mean([1.0] * 27 + [50.0] * 3) == 1.0


def test_evaluation_points_are_even_and_end_with_the_run() -> None:
    assert micro_run(steps=600, evaluations=8).train.evaluation_steps == (75, 150, 225, 300, 375, 450, 525, 600)
    assert micro_run(steps=10, evaluations=10).train.evaluation_steps == tuple(range(1, 11))


def test_prediction_off_predicts_nothing() -> None:
    result = train(micro_run(hybrid=HybridConfig(predictor="none"), steps=20))
    assert (result.predicted_steps, result.replay.norms) == (0, ())


def test_a_run_in_fp16_trains_with_a_scaled_loss() -> None:
    result = train(micro_run(precision="fp16"))
    assert (result.status, result.error) == ("finished", None)


def test_a_process_that_trains_again_keeps_nothing_of_its_earlier_runs(tmp_path: Path) -> None:
    run, alive, ends = micro_run(hybrid=CYCLES, evaluations=2), [], []
    for number in range(4):
        result = train(run, directory=tmp_path / str(number))
        gc.collect()
        alive.append(sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects()))
        ends.append([point.loss for point in result.curve])
    assert alive[1] == alive[2] == alive[3]
    assert ends[0] == ends[1] == ends[2] == ends[3]
