"""What a trial reports: its evaluations measured against the baseline and the frontier, as flat finite numbers.

At an evaluation a trial is compared with the baseline's curve *at the same nominal step*, so that a scheduler sees
numbers that can be compared. At the end it is compared with the whole run, and with the frontier of stopping earlier.

``objective`` is the one number that a scheduler and a sampler go by: the score; where net speedups are searched
(``net``) the net speedup, of a trial on its way the one it is heading for; with two objectives (``pareto``) the score,
for the scheduler alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.summary import INERT_SHARE
from hybrid_ray.objective import LARGEST, Baseline, degradation, score, speedup
from hybrid_ray.run_result import Evaluation, RunResult, Status, TrialEnd

__all__ = ["TrialScorer", "claimable", "failed_scores"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialScorer:
    """The baseline and frontier a study's trials are measured against."""

    baseline: Baseline
    frontier: Frontier
    objective: ObjectiveConfig

    @classmethod
    def from_results(cls, results: Sequence[RunResult], objective: ObjectiveConfig) -> "TrialScorer":
        """From a study's frontier runs, the baseline among them. Raises ValueError where they give no frontier."""
        baseline = next((result for result in results if result.arm == "baseline"), None)
        if baseline is None:
            raise ValueError("the baseline run is missing but every score is measured against it")
        return cls(
            baseline=Baseline.from_result(baseline),
            frontier=Frontier.from_results(results, "val"),
            objective=objective,
        )

    def diverged_at(self, curve: Iterable[Evaluation]) -> Evaluation | None:
        """The evaluation at which a trial is given up: its loss is too far above the baseline's for the second time in
        a row. None: at none of them. Loss and gradient that are not finite are noticed by the run itself.
        """
        in_a_row = 0
        for evaluation in curve:
            worse = degradation(evaluation.loss, self.baseline.loss_at(evaluation.step))
            in_a_row = in_a_row + 1 if worse > self.objective.max_degradation else 0
            if in_a_row == 2:
                return evaluation
        return None

    def at(self, evaluation: Evaluation, calibration: float, *, status: Status = "stopped") -> dict[str, Any]:
        """Measures of a trial on its way. ``net_speedup`` is None: a schedule that has not decayed has no place on
        the frontier.
        """
        return self._scores(evaluation, calibration, net=None, status=status)

    def final(self, result: RunResult) -> dict[str, Any]:
        """Measures of a run that came to its end, finished or diverged.

        Raises ValueError when the run and the baseline can't be compared (other hardware, software or data): no score.
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
        measured = self._scores(end, result.calibration, net=net, status=result.status)
        return measured | {"excess": excess, "error": result.error}

    def _excess(self, loss: float, time: float) -> float | None:
        """The score less that of plain training stopped early, which reaches another loss in the same time.

        None where the frontier has no run as short or as long.
        """
        stopped = self.frontier.loss_at(time)
        if stopped is None:
            return None
        faster = speedup(self.baseline.time, time)
        mine, other = (degradation(one, self.baseline.loss) for one in (loss, stopped))
        return score(faster, mine, self.objective) - score(faster, other, self.objective)

    def _scores(
        self, evaluation: Evaluation, calibration: float, *, net: float | None, status: Status
    ) -> dict[str, Any]:
        """All of `MEASURES`, and what Tune's side reads: ``step``, ``finished``."""
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
            "calibration": calibration,
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
        """The net speedup of a trial on its way, if it ends with what it has of the baseline's time and loss now.

        At its own step it has no place on the frontier, whose runs have decayed; at the end these two numbers alone
        decide. So a scheduler compares trials by what is searched, and an end is no other scale than the way to it.
        """
        return self._worth(self.baseline.loss * (1 + worse), self.baseline.time / max(1 / LARGEST, faster))

    def _worth(self, loss: float, time: float) -> float:
        """What a search for net speedup maximises: the net speedup, and something finite off the frontier too.

        Better than the longest run: the least it can be. Worse than the shortest, where nothing above 0 is certain:
        below 0, the further the worse the loss, so below all that reached the frontier.
        """
        worst = self.frontier.losses[0]
        if not loss <= worst:
            return -degradation(loss, worst)
        least, _ = self.frontier.net_speedup_bounds(loss, time)
        return min(LARGEST, least)


def failed_scores(error: str, end: TrialEnd = TrialEnd.FAILED) -> dict[str, Any]:
    """What a trial reports that could not be measured. Step 0: a scheduler learns nothing from it."""
    return {"step": 0, "objective": -LARGEST, "finished": 0, "status": "failed", "end": str(end), "error": error}


def claimable(row: Mapping[str, Any]) -> bool:
    """Whether a trial's row may be called best: it finished, did not diverge, and did predict."""
    return row["state"] == "COMPLETE" and not row["diverged"] and not row["inert"]
