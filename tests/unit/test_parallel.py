"""Two ranks over gloo train the same model as one process with the same batch, replicated or sharded."""

from dataclasses import replace
from pathlib import Path

import pytest
from micro_runs import CYCLES, Listener, micro_run
from rank_pool import RankPool

from hybrid_ray.method.ranks import rank
from hybrid_ray.run_result import Evaluation, Replay, RunResult, Status, StepRecord
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

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        return "stopped" if rank() == 1 else None


def on_rank(root: Path) -> dict[str, RunResult]:
    results = {}
    for way in ("ddp", "fsdp"):
        run = replace(RUN, workers=2, train=replace(RUN.train, parallel=way))
        results[way] = train(run, directory=root / way)
        # Dies and goes on from a checkpoint.
        again = replace(run, train=replace(run.train, checkpoint_every=8))
        marker = root / f"{way}-fell-{rank()}"
        try:
            train(again, directory=root / f"{way}-again", reporter=FallsOver(marker))
        except ConnectionError:
            marker.touch()
        results[f"{way}-again"] = train(again, directory=root / f"{way}-again", reporter=FallsOver(marker))
    parts = replace(RUN, workers=2, train=replace(RUN.train, micro_batch_size=2))
    results["micro-batches"] = train(parts)
    results["undecided"] = train(replace(RUN, workers=2), reporter=Undecided())
    return results


@pytest.fixture(scope="module")
def trained(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, RunResult]]:
    return ranks.run(on_rank, tmp_path_factory.mktemp("ranks"), timeout=300.0)


@pytest.fixture(scope="module")
def alone() -> RunResult:
    return train(RUN)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "micro-batches"])
def test_two_ranks_train_as_one(way: str, trained: list[dict[str, RunResult]], alone: RunResult) -> None:
    result = trained[0][way]
    assert result.replay.phases == alone.replay.phases
    assert [point.loss for point in result.curve] == pytest.approx([point.loss for point in alone.curve], rel=1e-6)
    assert result.heldout["test"].loss == pytest.approx(alone.heldout["test"].loss, rel=1e-6)
    assert result.heldout["test"].standard_error == pytest.approx(alone.heldout["test"].standard_error, rel=1e-5)
    assert result.tokens == alone.tokens


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ranks_agree_on_numbers_and_ends(way: str, trained: list[dict[str, RunResult]]) -> None:
    first, second = (of_rank[way] for of_rank in trained)
    assert (first.curve, first.heldout, first.step_seconds, first.time) == (
        second.curve,
        second.heldout,
        second.step_seconds,
        second.time,
    )
    assert [of_rank["undecided"].status for of_rank in trained] == ["stopped", "stopped"]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ranks_go_on_from_a_checkpoint_to_the_same_loss(way: str, trained: list[dict[str, RunResult]]) -> None:
    resumed, whole = trained[0][f"{way}-again"], trained[0][way]
    assert [point.loss for point in resumed.curve] == [point.loss for point in whole.curve]
    assert resumed.replay == whole.replay
