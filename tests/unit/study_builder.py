"""Study directories with known numbers, for tests of what is said about them.

Losses follow a power law in time, so that a trial's true net speedup is the one asked for. Statistics are made
by the real code.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import ConfirmConfig, JobConfig, SearchConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.summary import comparisons, net_speedup, rows, verdict
from hybrid_ray.objective import degradation, score
from hybrid_ray.run_result import Evaluation, Heldout, Replay, RunResult
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import write_jsonl
from hybrid_ray.storage.study_store import StudyStore

STEPS = 600
PLAIN = 0.02  # seconds of a plain step
SEEDS = (1000, 1001, 1002)


def loss_law(time: float) -> float:
    """Held-out loss of real steps alone after so many plain steps, learning rate fully decayed."""
    return 1.1 + 1.6 * time**-0.3


def run_result(
    arm: str = "hybrid", *, steps: int = STEPS, predicted: int = 0, net: float = 1.0, seed: int = 0, noise: float = 0.0
) -> RunResult:
    """A finished run whose loss is what real steps alone reach in ``net`` times its time."""
    real = steps - predicted
    time = real + predicted / 50
    loss = loss_law(time * net) * math.exp(noise)
    seconds = time * PLAIN
    parts = {"data": 0.03, "forward": 0.3, "backward": 0.55, "optimizer": 0.12}
    phases = {"warmup": min(60, real), "full": max(0, real - 60), "predict": predicted}
    return RunResult(
        arm=arm,
        seed=seed,
        status="finished",
        step_seconds=PLAIN,
        heldout={
            "val": Heldout(loss=loss, standard_error=0.004, tokens=65536),
            "test": Heldout(loss=loss * 1.01, standard_error=0.004, tokens=65536),
        },
        curve=tuple(
            Evaluation(
                step=steps * point // 8,
                loss=loss * (1 + 0.8 * (8 / point - 1) ** 0.5 * 0.5),
                real_steps=real * point // 8,
                train_seconds=seconds * point / 8,
                time=seconds * point / 8 / PLAIN,
            )
            for point in range(1, 9)
        ),
        phase_seconds={phase: PLAIN * count / (50 if phase == "predict" else 1) for phase, count in phases.items()},
        part_seconds={name: share * real * PLAIN for name, share in parts.items()}
        | {"predict": predicted * PLAIN / 50},
        other_seconds={"setup": 0.5, "calibration": 0.6, "evaluation": 0.4},
        tokens={"gradient": real * 1024, "forward_only": 0},
        replay=Replay(phases="".join(phase[0].upper() * count for phase, count in phases.items()), norms=()),
        statistics={"displacement_ratio": 1.2},
    )


def trial_row(
    number: int, result: RunResult, job: JobConfig, *, state: str = "COMPLETE", **changes: Any
) -> dict[str, Any]:
    """The row a driver would keep of a trial."""
    base = run_result("baseline")
    loss, baseline_loss = result.heldout["val"].loss, base.heldout["val"].loss
    faster, worse = base.time / result.time, degradation(loss, baseline_loss)
    line = Frontier.from_points((STEPS * length, loss_law(STEPS * length)) for length in job.frontier.lengths)
    scored = score(faster, worse, job.objective)
    return {
        "number": number,
        "state": state,
        "params_confidence_threshold": 0.2 + 0.05 * (number % 9),
        "params_prediction_horizon": 2 + number % 10,
        "params_correction_interval": number % 4,
        "score": scored,
        "objective": scored,
        "speedup": faster,
        "degradation": worse,
        "net_speedup": line.net_speedup(loss, result.time),
        "net_error": (line.net_speedup(loss, result.time) or 0.0) * (line.net_error or 0.0),
        "excess": None
        if (stopped := line.loss_at(result.time)) is None
        else scored - score(faster, degradation(stopped, baseline_loss), job.objective),
        "loss": loss,
        "baseline_loss": baseline_loss,
        "time": result.time,
        "baseline_time": base.time,
        "train_seconds": result.train_seconds,
        "step_seconds": result.step_seconds,
        "steps": result.steps,
        "real_steps": result.real_steps,
        "predicted_steps": result.predicted_steps,
        "predicted_share": result.predicted_share,
        "diverged": 0,
        "inert": int(result.predicted_share < 0.05),
        "status": result.status,
        "error": None,
        "preset": "quick" if number == 0 else None,
        "equal_to": None,
        "started": 1_700_000_000.0 + 10 * number,
        "ended": 1_700_000_009.0 + 10 * number,
        **changes,
    }


def confirmed(
    trial: int,
    *,
    net: float,
    noise: float = 0.0004,
    seeds: Sequence[int] = SEEDS,
    predicted: int = 200,
    changes: Mapping[str, Any] | None = None,
) -> dict:
    """What `confirm` leaves of one candidate whose true net speedup is ``net``, by the real statistics.

    ``changes`` are comparisons put in place of those that these runs have.
    """
    draw = random.Random(trial)
    shared = {seed: draw.gauss(0, 0.01) for seed in seeds}

    def runs(arm: str, **settings: Any) -> dict[int, RunResult]:
        return {
            seed: run_result(arm, seed=seed, noise=shared[seed] + draw.gauss(0, noise), **settings) for seed in seeds
        }

    arms = {
        "baseline": runs("baseline"),
        "hybrid": runs("hybrid", predicted=predicted, net=net),
        "equal_steps": runs("equal_steps", steps=STEPS - predicted),
        "placebo": runs("placebo", predicted=predicted, net=0.9),
    }
    line = Frontier.from_points(
        (STEPS * length, 1.01 * loss_law(STEPS * length)) for length in (0.4, 0.55, 0.7, 0.85, 1, 1.1)
    )
    found = net_speedup(arms, line, "test")
    found["p_corrected"] = found["p"]
    compared = comparisons(arms, "test") | (changes or {})
    said, refusal = verdict(found, compared, predicted_share=predicted / STEPS, p_corrected=found["p"], alpha=0.05)
    return {
        "trial": trial,
        "params": {"confidence_threshold": 0.3, "prediction_horizon": 5, "correction_interval": 0},
        "runs": {arm: rows(results, "test") for arm, results in arms.items()},
        "comparisons": compared,
        "net_speedup": found,
        "verdict": said,
        "refusal": refusal,
        "results": arms,
    }


def build_study(
    directory: Path,
    *,
    trials: int = 16,
    net: float = 0.93,
    finished: bool = True,
    confirm: bool = True,
    record: bool = False,
) -> Path:
    """A whole study directory: frontier, trials in every state, a confirmation; with ``record`` also what a driver
    stores to find lost files.
    """
    job = JobConfig(name=directory.name, search=SearchConfig(trials=max(1, trials)), confirm=ConfirmConfig())
    write_atomic(directory / "job.yaml", dump_job(job).encode())
    store = StudyStore(directory)
    store.write_json(
        "environment.json",
        {
            "python": "3.11",
            "packages": {"torch": "2.13"},
            "memory_bytes": 2**33,
            "gpus": [],
            **({"job": dump_job(job)} if record else {}),
        },
    )
    store.event("created")
    places = ["baseline" if length == 1.0 else f"frontier/{length:.2f}" for length in job.frontier.lengths]
    if record:
        store.event("stage", stage="frontier", runs=places)
        store.event("stage", stage="search")
    for length in job.frontier.lengths:
        place = "baseline" if length == 1.0 else f"frontier/{length:.2f}"
        keep(directory / place, run_result("baseline" if length == 1.0 else "frontier", steps=round(STEPS * length)))
    draw = random.Random(0)
    for number in range(trials):
        predicted = 0 if number % 8 == 7 else draw.randrange(60, 300)
        result = run_result(predicted=predicted, net=net * draw.uniform(0.9, 1.02) if predicted else 1.0)
        row = trial_row(number, result, job)
        if number % 5 == 4:
            row |= {"state": "PRUNED", "net_speedup": None, "status": "stopped", "loss": row["loss"] * 1.1}
        if number == 9:
            row |= {"diverged": 1, "status": "diverged", "score": -1e9, "objective": -1e9, "loss": 9.5}
        if number == 10:
            row = {"number": 10, "state": "FAIL", "status": "failed", "error": "oom: <b>2.1 GiB</b> | wanted"}
        else:
            keep(directory / f"trials/{number:04d}", replace(result, status=row["status"]), steps=True)
        store.add_trial(row)
    if confirm:
        if record:
            store.event("stage", stage="confirmation")
        _confirm(directory, store, net)
    if finished:
        store.event("finished", note=None)
    store.close()
    return directory


def _confirm(directory: Path, store: StudyStore, net: float) -> None:
    rows = [row for row in store.trials() if row["state"] == "COMPLETE" and not row["inert"]]
    best = sorted(rows, key=lambda row: -row["score"])[:2]
    candidates = [confirmed(row["number"], net=net, predicted=row["predicted_steps"]) for row in best]
    for candidate in candidates:
        for arm, results in candidate.pop("results").items():
            place = "baseline" if arm == "baseline" else str(candidate["trial"])
            for seed, result in results.items():
                run = directory / "confirmation" / place / f"{arm}-{seed}"
                if not run.exists():  # baselines are shared
                    keep(run, result)
    store.write_json("confirmation.json", {"candidates": candidates, "split": "test", "seeds": list(SEEDS)})


def keep(directory: Path, result: RunResult, *, steps: bool = False) -> None:
    """A run directory as a finished run leaves it, if asked with step records that fit its result."""
    directory.mkdir(parents=True)
    write_json_atomic(directory / "result.json", result.as_dict())
    if steps:
        write_jsonl(directory / "steps.jsonl", _steps(result))


def _steps(result: RunResult) -> Iterator[dict[str, Any]]:
    share = result.predicted_share
    for step in range(1, result.steps + 1):
        predicted = step > 60 and math.floor(step * share) > math.floor((step - 1) * share)
        yield {
            "step": step,
            "phase": "warmup" if step <= 60 else "predict" if predicted else "full",
            "predicted": predicted,
            "loss": None if predicted else loss_law(step),
            "confidence": 0.6 - 0.5 * math.exp(-step / 80),
            "learning_rate": 3e-3,
            "grad_norm": None if predicted else 0.8,
            "seconds": PLAIN,
            "level": "normal",
            "event": None,
        }
