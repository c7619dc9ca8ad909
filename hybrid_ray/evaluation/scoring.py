"""Compute what a trial reports: its evaluations relative to the baseline and the frontier, as flat finite numbers.

At an evaluation, a trial is compared with the baseline's curve *at the same nominal step*, so that a scheduler can
compare trials. At the end, it is compared with the whole baseline run and with the frontier of stopping earlier.

``objective`` is the single number that the scheduler and the sampler optimise. It is the score, except in mode ``net``:
there it is the net speedup, which is projected for a trial that has not ended. In mode ``pareto``, which has two
objectives, only the scheduler uses it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.summary import INERT_SHARE
from hybrid_ray.objective import LARGEST, Baseline, degradation, score, speedup
from hybrid_ray.run_result import Evaluation, RunResult, Status, TrialEnd

__all__ = ["TrialScorer", "failed_scores"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialScorer:
    """Scores trials relative to the baseline and the frontier of their study."""

    baseline: Baseline
    frontier: Frontier
    objective: ObjectiveConfig

    @classmethod
    def from_results(cls, results: Sequence[RunResult], objective: ObjectiveConfig) -> "TrialScorer":
        """Build from a study's frontier runs, which include the baseline. Raises ValueError if they are not enough."""
        baseline = next((result for result in results if result.arm == "baseline"), None)
        if baseline is None:
            raise ValueError("the baseline run is missing but every score is measured against it")
        return cls(
            baseline=Baseline.from_result(baseline),
            frontier=Frontier.from_results(results, "val"),
            objective=objective,
        )

    def diverged_at(self, curve: Iterable[Evaluation]) -> Evaluation | None:
        """The evaluation at which a trial counts as diverged, or None.

        A trial has diverged if the degradation of its loss exceeds ``max_degradation`` at two evaluations in a row. The
        run itself detects a loss or gradient that is not finite.
        """
        in_a_row = 0
        for evaluation in curve:
            worse = degradation(evaluation.loss, self.baseline.loss_at(evaluation.step))
            in_a_row = in_a_row + 1 if worse > self.objective.max_degradation else 0
            if in_a_row == 2:
                return evaluation
        return None

    def at(self, evaluation: Evaluation, step_seconds: float, *, status: Status = "stopped") -> dict[str, Any]:
        """Measures of a trial that has not ended.

        ``net_speedup`` is None: the trial's learning rate has not decayed yet, so its loss is not comparable with the
        frontier.
        """
        return self._scores(evaluation, step_seconds, net=None, status=status)

    def final(self, result: RunResult) -> dict[str, Any]:
        """Measures of a run that finished or diverged.

        Raises ValueError if the run and the baseline are not comparable (different hardware, software or data).
        """
        differences = self.baseline.mismatches(result.fingerprint)
        if differences:
            raise ValueError("no score: " + "; ".join(differences))
        finished = result.status == "finished"
        loss = result.heldout["val"].loss if finished else result.curve[-1].loss if result.curve else math.nan
        end = Evaluation(
            step=result.steps,
            loss=loss,
            real_steps=result.real_steps,
            train_seconds=result.train_seconds,
            time=result.time,
        )
        net = self.frontier.net_speedup(loss, end.time) if finished else None
        excess = self._excess(loss, end.time) if finished else None
        measured = self._scores(end, result.step_seconds, net=net, status=result.status)
        return measured | {"excess": excess, "error": result.error}

    def _excess(self, loss: float, time: float) -> float | None:
        """The score minus the score of plain training stopped early at the same time.

        None if the time is outside the frontier's range.
        """
        stopped = self.frontier.loss_at(time)
        if stopped is None:
            return None
        faster = speedup(self.baseline.time, time)
        mine, other = (degradation(one, self.baseline.loss) for one in (loss, stopped))
        return score(faster, mine, self.objective) - score(faster, other, self.objective)

    def _scores(
        self, evaluation: Evaluation, step_seconds: float, *, net: float | None, status: Status
    ) -> dict[str, Any]:
        """All of `MEASURES`, and the values that the Ray Tune code reads: ``step`` and ``finished``."""
        step, loss, time = evaluation.step, evaluation.loss, evaluation.time
        baseline_time, baseline_loss = self.baseline.time_at(step), self.baseline.loss_at(step)
        faster, worse = speedup(baseline_time, time), degradation(loss, baseline_loss)
        scored = worth = score(faster, worse, self.objective)
        if self.objective.mode == "net":
            worth = self._worth(loss, time) if status == "finished" else self._heading_for(faster, worse)
        share = (step - evaluation.real_steps) / max(1, step)
        return {
            **asdict(evaluation),
            "score": scored,
            "speedup": faster,
            "degradation": worse,
            "net_speedup": net,
            "net_error": None if net is None else net * (self.frontier.net_error or 0.0),
            "excess": None,
            "baseline_loss": baseline_loss,
            "baseline_time": baseline_time,
            "step_seconds": step_seconds,
            "steps": step,
            "predicted_steps": step - evaluation.real_steps,
            "predicted_share": share,
            "diverged": int(status == "diverged"),
            "inert": int(share < INERT_SHARE),
            "status": status,
            "error": None,
            "finished": int(status == "finished"),
            "objective": worth,
        }

    def _heading_for(self, faster: float, worse: float) -> float:
        """Projected net speedup of a trial that has not ended, assuming that its speedup and degradation stay the same.

        The trial's current loss is not comparable with the frontier, whose runs have a fully decayed learning rate. At
        the end, the net speedup depends only on speedup and degradation. With this projection, intermediate and final
        values share one scale, so the scheduler can compare them.
        """
        return self._worth(self.baseline.loss * (1 + worse), self.baseline.time / max(1 / LARGEST, faster))

    def _worth(self, loss: float, time: float) -> float:
        """The value that a search for net speedup maximises: the net speedup, with finite values outside the frontier.

        If the loss is below that of the frontier's longest run, it is the lower bound of the net speedup. If the loss
        is above that of the shortest run, the only lower bound is 0; the value is then minus the degradation relative
        to that run. So it is negative, and below that of every trial within the frontier's range.
        """
        worst = self.frontier.losses[0]
        if not loss <= worst:
            return -degradation(loss, worst)
        least, _ = self.frontier.net_speedup_bounds(loss, time)
        return min(LARGEST, least)


def failed_scores(error: str, end: TrialEnd = TrialEnd.FAILED) -> dict[str, Any]:
    """The report of a trial without measures. Its step is 0, so that the scheduler does not use it."""
    return {"step": 0, "objective": -LARGEST, "finished": 0, "status": "failed", "end": str(end), "error": error}
