"""The tables of a study's report. All cells are text; report.html and report.md show the same tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hybrid_ray.config import HybridConfig
from hybrid_ray.report.headline import interval_text
from hybrid_ray.report.load import Study
from hybrid_ray.report.tables.cells import NONE, Table, loss_unit, mean_of, number, percent, ratio, setting, with_error
from hybrid_ray.report.tables.trials import backward_share_of, ceilings_of, first_to_see

__all__ = ["best_settings", "confirmation_tables", "speedups"]


def confirmation_tables(study: Study) -> list[Table]:
    """One table per confirmed trial: the loss of each arm on each seed, and the hybrid's loss relative to each arm."""
    if study.statistics is None:
        return []
    seeds = study.statistics["seeds"]
    return [_confirmation(candidate, seeds, loss_unit(study.words)) for candidate in study.statistics["candidates"]]


def _confirmation(candidate: Mapping[str, Any], seeds: Sequence[int], unit: str) -> Table:
    rows = []
    scored = any(run.get("accuracy") is not None for runs in candidate["runs"].values() for run in runs)
    for arm, runs in candidate["runs"].items():
        losses = {run["seed"]: run["loss"] for run in runs}
        done = [run for run in runs if run["loss"] is not None]
        rows.append(
            (
                arm.replace("_", " "),
                *(number(losses.get(seed), 4) for seed in seeds),
                number(mean_of(done, "loss"), 4),
                *((percent(mean_of(done, "accuracy"), 2),) if scored else ()),
                number(mean_of(done, "time"), 1),
                number(mean_of(done, "train_seconds"), 1),
                ratio(candidate["comparisons"].get(f"loss_vs_{arm}"), 4),
            )
        )
    net = candidate["net_speedup"]
    because = f", since {candidate['refusal']}" if candidate["refusal"] else ""
    note = (
        f"Losses: {unit} on the test split, lower is better. Times: means over the seeds. Loss ratio: paired by seed, "
        "mean with 95 % confidence interval; below 1 the hybrid is better than the arm. "
        f"Verdict: {candidate['verdict']}{because}. Net speedup {interval_text(net)} ({net['n']} seeds)."
    )
    if net.get("note"):
        note += f" Note: {net['note']}."
    settings = ", ".join(f"{name.replace('_', ' ')} {setting(value)}" for name, value in candidate["params"].items())
    return Table(
        title=f"Trial {candidate['trial']} on fresh seeds ({settings})",
        columns=(
            "arm", *(f"loss, seed {seed}" for seed in seeds), "mean loss", *(("accuracy",) if scored else ()),
            "training time (plain steps)", "training time (s)", "loss ratio, hybrid / arm",
        ),
        rows=tuple(rows),
        note=note,
    )  # fmt: skip


def speedups(study: Study) -> Table:
    """Speedups of the best and the confirmed trials, their upper bounds, and the net speedups."""
    backward = backward_share_of(study)
    rows: list[tuple[str, ...]] = []
    for _, trial in first_to_see(study).iterrows():
        free, forward = ceilings_of(trial["predicted_share"], backward)
        rows.append(
            (
                f"trial {trial['number']:.0f} in the search (1 seed)", percent(trial["predicted_share"]),
                number(trial["speedup"], 3), NONE, NONE, number(free, 3), number(forward, 3),
                with_error(trial["net_speedup"], trial["net_error"]),
            )
        )  # fmt: skip
    for candidate in (study.statistics or {}).get("candidates", ()):
        share = mean_of([run for run in candidate["runs"]["hybrid"] if run["loss"] is not None], "predicted_share")
        free, forward = ceilings_of(share, backward)
        compared = [candidate["comparisons"].get(name) for name in ("speedup", "step_speedup", "flop_speedup")]
        rows.append(
            (
                f"trial {candidate['trial']} on fresh seeds", percent(share),
                *(ratio(one) for one in compared), number(free, 3), number(forward, 3),
                ratio(candidate["net_speedup"]),
            )
        )  # fmt: skip
    measured = "not measured" if backward is None else f"measured as {backward:.3f}"
    return Table(
        title="Speedups",
        columns=(
            "run", "steps predicted (f)", "speedup in time", "speedup in real steps", "speedup in FLOPs",
            "bound 1/(1−f)", "bound 1/(1−f·b)", "net speedup",
        ),
        rows=tuple(rows),
        note=(
            "Factors, above 1 is faster. Speedups compare with the baseline at the same number of nominal steps; the "
            "net speedup compares with stopping early at the same loss. The speedup in time cannot exceed 1/(1−f) if "
            "a predicted step costs nothing, or 1/(1−f·b) if it costs a forward pass. b, the share of a real step "
            f"spent in backward and optimizer, was {measured}."
        ),
    )  # fmt: skip


def best_settings(study: Study) -> Table | None:
    """Settings of the best trial: first the searched ones, then the method's other settings from the job."""
    best = study.best
    if best is None:
        return None
    searched = {name.removeprefix("params_"): best[name] for name in best.index if name.startswith("params_")}
    gate = study.job.hybrid.gate_kind
    hybrid = asdict(study.job.hybrid)
    hybrid |= {"predictor": hybrid["predictor"]["name"]} | {
        f"predictor.{name}": value for name, value in hybrid["predictor"]["options"].items()
    }
    hybrid |= _in_effect(study.job.hybrid)
    fixed = {name: value for name, value in hybrid.items() if name not in searched}
    unread = {"confidence_threshold": "confidence", "gate_rate": "random"}  # by the gate that reads it
    return Table(
        title=f"Settings of the best trial ({best['number']:.0f})",
        columns=("setting", "value", ""),
        rows=(
            *((name, setting(value), "searched") for name, value in searched.items()),
            *(
                (name, setting(value), "" if unread.get(name, gate) == gate else f"no effect with gate {gate}")
                for name, value in fixed.items()
            ),
        ),
    )


def _in_effect(hybrid: HybridConfig) -> dict[str, Any]:
    """The settings that a job may leave to the predictor, with the values that its runs used."""
    return {
        "gate": hybrid.gate_kind,
        "trust": hybrid.trust_kind,
        "first_fraction": hybrid.predicts_from,
        "off_fraction": 1.0 - hybrid.predicts_until,
    }
