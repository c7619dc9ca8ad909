"""Two ranks over gloo train the same model as one process with the same batch, replicated or sharded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro_runs import CYCLES, Listener, micro_run

from hybrid_ray.method.ranks import rank
from hybrid_ray.run_result import Evaluation, Replay, RunResult, Status, StepRecord
from hybrid_ray.training.distributed import process_group
from hybrid_ray.training.loop import train

pytestmark = pytest.mark.slow
RUN = micro_run(hybrid=CYCLES, steps=30, evaluations=2)


class FallsOver(Listener):
    """One rank dies in Predict, the first time."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    def step(self, record: StepRecord) -> None:
        if record.step == 17 and not self._marker.exists():
            raise ConnectionError


class Undecided(Listener):
    """Rank 1 alone wants to stop."""

    def evaluation(self, evaluation: Evaluation, calibration: float, replay: Replay) -> Status | None:
        return "stopped" if rank() == 1 else None


def on_rank(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    root = Path(folder)
    results = {}
    with process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=index, world_size=2):
        for way in ("ddp", "fsdp"):
            run = replace(RUN, workers=2, train=replace(RUN.train, parallel=way))
            results[way] = train(run, directory=root / way)
            # Dies and goes on from a checkpoint.
            again = replace(run, train=replace(run.train, checkpoint_every=8))
            marker = root / f"{way}-fell-{index}"
            try:
                train(again, directory=root / f"{way}-again", reporter=FallsOver(marker))
            except ConnectionError:
                marker.touch()
            results[f"{way}-again"] = train(again, directory=root / f"{way}-again", reporter=FallsOver(marker))
        parts = replace(RUN, workers=2, train=replace(RUN.train, micro_batch_size=2))
        results["micro-batches"] = train(parts)
        results["undecided"] = train(replace(RUN, workers=2), reporter=Undecided())
    (root / f"rank-{index}.json").write_text(json.dumps({name: row.as_dict() for name, row in results.items()}))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, RunResult]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, args=(str(folder),), nprocs=2)
    rows = [json.loads((folder / f"rank-{index}.json").read_text()) for index in range(2)]
    return [{name: RunResult.from_dict(row) for name, row in of_rank.items()} for of_rank in rows]


@pytest.fixture(scope="module")
def alone() -> RunResult:
    return train(RUN)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "micro-batches"])
def test_two_ranks_train_as_one(way: str, ranks: list[dict[str, RunResult]], alone: RunResult) -> None:
    result = ranks[0][way]
    assert result.replay.phases == alone.replay.phases
    assert [point.loss for point in result.curve] == pytest.approx([point.loss for point in alone.curve], rel=1e-6)
    assert result.heldout["test"].loss == pytest.approx(alone.heldout["test"].loss, rel=1e-6)
    assert result.heldout["test"].standard_error == pytest.approx(alone.heldout["test"].standard_error, rel=1e-5)
    assert result.tokens == alone.tokens


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ranks_agree_on_numbers_and_ends(way: str, ranks: list[dict[str, RunResult]]) -> None:
    first, second = (of_rank[way] for of_rank in ranks)
    assert (first.curve, first.heldout, first.calibration, first.time) == (
        second.curve,
        second.heldout,
        second.calibration,
        second.time,
    )
    assert [of_rank["undecided"].status for of_rank in ranks] == ["stopped", "stopped"]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ranks_go_on_from_a_checkpoint_to_the_same_loss(way: str, ranks: list[dict[str, RunResult]]) -> None:
    resumed, whole = ranks[0][f"{way}-again"], ranks[0][way]
    assert [point.loss for point in resumed.curve] == [point.loss for point in whole.curve]
    assert resumed.replay == whole.replay
