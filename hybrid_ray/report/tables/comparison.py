"""The tables of a comparison's report. All cells are text; report.html and report.md show the same tables."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.report.tables.cells import NONE, Table, loss_unit, mean_of, number, percent, ratio, words

__all__ = ["arms", "findings", "peers", "ratios", "tuning"]


def findings(result: Mapping[str, Any]) -> list[str]:
    """Warnings for the top of the page: configurations that never predicted, a learning rate that was not tuned or
    lies at the edge of those tried, runs without a result.
    """
    return [*_silent(result), *_edge(result), *_lost(result)]


def _silent(result: Mapping[str, Any]) -> Iterator[str]:
    for entry in result["configurations"]:
        if entry["predicts"] and all(run["predicted_share"] == 0 for run in entry["runs"]):
            threshold = entry["settings"].get("hybrid.confidence_threshold", result["job"]["confidence_threshold"])
            known = [run["highest_confidence"] for run in entry["runs"] if run["highest_confidence"] is not None]
            reached = f": its confidence reached at most {max(known):.2f}" if known else ""
            reached += f" and the threshold is {threshold:g}" if known else ""
            yield (
                f"{words(entry['name'])} never predicted{reached}. Its numbers are those of plain training plus the "
                "method's overhead."
            )


def _edge(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["tuning"]:
        yield "The learning rate was not tuned: a tuned baseline may do better than this one."
    for name, tuned in _all_tuning(result).items():
        for setting in tuned["at_edge"]:
            best = _value(tuned["best"][setting])
            yield (
                f"{words(name)}: the best {words(setting)}, {best}, is at the edge of those tried; a better one may "
                "lie beyond it."
            )


def _all_tuning(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tuning records of the baseline, the hybrid and the peers, by name."""
    return {
        **result["tuning"],
        **{optimizer_title(peer["name"]): peer["tuning"] for peer in result["peers"] if peer["tuning"]},
    }


def _lost(result: Mapping[str, Any]) -> Iterator[str]:
    """Runs without a result, grouped by the reason; reasons that differ in numbers only are one."""
    lost: dict[str, tuple[str, dict[str, list[int]]]] = {}
    for arm, rows in result["arms"].items():
        for row in rows:
            if row["loss"] is None:
                reason = row["error"] or row["status"]
                kind = re.sub(r"\d[\d.e+-]*", "", reason)
                lost.setdefault(kind, (reason, {}))[1].setdefault(words(arm), []).append(row["seed"])
    for reason, seeds in lost.values():
        runs = [f"{arm} (seed{'s' * (len(each) > 1)} {', '.join(map(str, each))})" for arm, each in seeds.items()]
        first = " of the first" if len(runs) > 1 or "," in runs[0] else ""
        yield f"Runs without a result: {', '.join(runs)}. Reason{first}: {reason}."


def arms(result: Mapping[str, Any]) -> Table:
    """One row per arm: its loss, its cost, and the hybrid's loss relative to it."""
    scored = any(row.get("accuracy") is not None for rows in result["arms"].values() for row in rows)
    rows = []
    for arm, runs in result["arms"].items():
        done = [row for row in runs if row["loss"] is not None]
        accuracy = (percent(mean_of(done, "accuracy"), 2),) if scored else ()
        rows.append(
            (
                words(arm), f"{len(done)} of {len(runs)}", number(mean_of(done, "loss"), 4), *accuracy,
                number(mean_of(done, "time"), 1), number(mean_of(done, "train_seconds"), 2),
                number(mean_of(done, "real_steps"), 1), percent(mean_of(done, "predicted_share")),
                _target(result, arm), ratio(result["comparisons"].get(f"loss_vs_{arm}"), 4),
            )
        )  # fmt: skip
    return Table(
        title="Loss and cost of each arm",
        columns=(
            "arm", "seeds finished", "loss", *(("accuracy",) if scored else ()), "training time (plain steps)",
            "training time (s)", "real steps", "steps predicted", "time to target (plain steps)",
            "loss ratio, hybrid / arm",
        ),
        rows=tuple(rows),
        note=(
            f"Means over seeds. Loss: {loss_unit(result['job']['words'])} on the {result['split']} split, lower "
            f"is better. Loss ratio: paired by seed, with {result['level']:.1%} confidence interval; below 1 the "
            "hybrid is better than the arm. Time to target: median training time until the val loss reaches the "
            "baselines' mean final val loss plus the tolerance; never: the median run missed it. It is measured during "
            "the run, before the learning rate has decayed, so it cannot be compared with the frontier."
        ),
    )  # fmt: skip


def _target(result: Mapping[str, Any], arm: str) -> str:
    if result["time_to_target"] is None:
        return NONE
    median = result["time_to_target"]["arms"][arm]["median"]
    return "never" if median is None else f"{median:.1f}"


def ratios(result: Mapping[str, Any]) -> Table:
    """The two ratios that decide the verdict, then the ratios that explain them."""
    plan = result["planning"]
    found = {
        "net speedup: time ratio at equal loss (stopping early / hybrid)": result["net_speedup"],
        "loss ratio at equal time (stopping early / hybrid)": result["net_speedup"]["advantage"],
        **_explained(result),
    }
    needed = plan["seeds_needed"]
    looks = ", ".join(map(str, result["interim_analyses"]["seeds"]))
    wanted = (
        f" To detect a {plan['effect']:.0%} difference in time with {plan['power']:.0%} power takes {needed} seeds."
        if needed
        else ""
    )
    return Table(
        title="Ratios of the hybrid to its controls",
        columns=("ratio", "mean (interval)", "p-value", "seeds", "remarks"),
        rows=tuple(
            (name, ratio(one, 4), number(one["p"], 4), str(one["n"]), one["note"] or NONE)
            for name, one in found.items()
        ),
        note=(
            f"The verdict rests on the first two ratios. A gain needs both {result['level']:.1%} confidence intervals "
            "above 1; both below 1 means worse than stopping early. Their p-value is that of the second. The level "
            f"allows for the interim analyses planned at {looks} seeds. A gain is refused if the hybrid's real steps "
            "cost more than plain steps by as much as the gain (by either measure), or if the placebo is not shown to "
            f"do worse. The other ratios explain the result and are not corrected for multiple testing.{wanted}"
        ),
    )


def _explained(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    titles = {
        "speedup": "speedup in training time (baseline / hybrid)",
        "step_speedup": "speedup in real steps (baseline / hybrid)",
        "flop_speedup": "speedup in FLOPs (baseline / hybrid)",
        "real_step_cost": "cost of a real step (hybrid / plain training, timed in the same process)",
        "plain_step_seconds": "seconds of a plain step, whole runs (hybrid / equal steps)",
    }
    return {
        titles.get(name, f"loss (hybrid / {words(name).removeprefix('loss vs ')})"): found
        for name, found in result["comparisons"].items()
    }


def tuning(result: Mapping[str, Any]) -> Table | None:
    """The settings tried for the baseline, the hybrid and the peers, with the losses; None if nothing was tuned."""
    tuned = _all_tuning(result)
    if not tuned:
        return None
    return Table(
        title="Tuning",
        columns=("tuned for", "setting", "value", "val loss", ""),
        rows=tuple(
            (
                words(name), words(row["setting"]), _value(row["value"]), number(row["loss"], 4),
                "best" if row["value"] == one["best"][row["setting"]] else "",
            )
            for name, one in tuned.items()
            for row in one["tried"]
        ),
        note=(
            "One run per value, on the job's own seed; the settings tuned before it have their best values. Val loss: "
            "lower is better."
        ),
    )  # fmt: skip


def peers(result: Mapping[str, Any]) -> Table:
    """The peers: other optimizers without prediction, tuned like the baseline and trained as long as the hybrid."""
    own = optimizer_title(result["job"]["optimizer"])
    rows = []
    for peer in result["peers"]:
        done = [row for row in peer["runs"] if row["loss"] is not None]
        rows.append(
            (
                optimizer_title(peer["name"]), f"{len(done)} of {len(peer['runs'])}", f"{peer['learning_rate']:g}",
                number(mean_of(done, "loss"), 4), number(mean_of(done, "time"), 1),
                number(mean_of(done, "real_steps"), 1),
                ratio(peer["net_speedup"]), ratio(peer["over_baseline"]),
            )
        )  # fmt: skip
    return Table(
        title="Peers",
        columns=(
            "optimizer", "seeds finished", "learning rate", "loss", "training time (plain steps)", "real steps",
            "net speedup of the hybrid over it", f"net speedup of it over {own}",
        ),
        rows=tuple(rows),
        note=(
            "Each was tuned with as many runs as the baseline, has its own frontier, and trains as long as the hybrid "
            f"on every seed. Training time is in plain steps of {own}; the two optimizers were timed in turns in one "
            "process. Predicting pays only if the hybrid's net speedup over every one of them is above 1."
        ),
    )  # fmt: skip


def _value(value: Any) -> str:
    return ", ".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else f"{value:g}"
