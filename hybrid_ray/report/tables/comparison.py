"""The tables of a comparison's report. All cells are text; report.html and report.md show the same tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.config.task import stored_words
from hybrid_ray.report.tables.published import PUBLISHED
from hybrid_ray.report.tables.study import NONE, Table, loss_unit, number, percent

__all__ = ["arms", "configurations", "ends", "findings", "peers", "published", "ratio", "ratios", "tuning"]

PHASES = ("warmup", "full", "predict", "correct")

Runs = Sequence[Mapping[str, Any]]


def ratio(found: Mapping[str, Any], digits: int = 3) -> str:
    """A mean with its interval, ``0.930 (0.900–0.960)``; an unknown end is a question mark, a missing mean a dash."""
    return NONE if found["mean"] is None else f"{found['mean']:.{digits}f} ({ends(found, digits)})"


def ends(found: Mapping[str, Any], digits: int = 3) -> str:
    """The two ends of an interval, ``0.900–0.960``; an unknown end is a question mark."""
    if found["mean"] is None:
        return f"no interval from {found['n']} seeds"
    return "–".join("?" if found[end] is None else f"{found[end]:.{digits}f}" for end in ("low", "high"))


def findings(result: Mapping[str, Any]) -> list[str]:
    """Warnings for the top of the page: configurations that never predicted, a learning rate that was not tuned or
    lies at the edge of those tried, runs without a result.
    """
    return [*_silent(result), *_edge(result), *_lost(result)]


def _silent(result: Mapping[str, Any]) -> Iterator[str]:
    for entry in result["configurations"]:
        if entry["predicts"] and all(run["predicted_share"] == 0 for run in entry["runs"]):
            threshold = entry["settings"].get("hybrid.confidence_threshold", result["job"]["confidence_threshold"])
            highest = max(run["highest_confidence"] or 0.0 for run in entry["runs"])
            yield (
                f"{_words(entry['name'])} never predicted: its confidence reached at most {highest:.2f} and the "
                f"threshold is {threshold:g}. Its numbers are those of plain training plus the method's overhead."
            )


def _edge(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["tuning"]:
        yield "The learning rate was not tuned: a tuned baseline may do better than this one."
    for name, tuned in _all_tuning(result).items():
        for setting in tuned["at_edge"]:
            best = _value(tuned["best"][setting])
            yield (
                f"{_words(name)}: the best {_words(setting)}, {best}, is at the edge of those tried; a better one may "
                "lie beyond it."
            )


def _all_tuning(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tuning records of the baseline, the hybrid and the peers, by name."""
    return {
        **result["tuning"],
        **{optimizer_title(peer["name"]): peer["tuning"] for peer in result["peers"] if peer["tuning"]},
    }


def _lost(result: Mapping[str, Any]) -> Iterator[str]:
    """Runs without a result, grouped by the reason."""
    reasons: dict[str, list[str]] = {}
    for arm, rows in result["arms"].items():
        for row in rows:
            if row["loss"] is None:
                reasons.setdefault(row["error"] or row["status"], []).append(f"{_words(arm)} (seed {row['seed']})")
    yield from (f"Runs without a result: {', '.join(runs)}. Reason: {reason}." for reason, runs in reasons.items())


def arms(result: Mapping[str, Any]) -> Table:
    """One row per arm: its loss, its cost, and the hybrid's loss relative to it."""
    scored = any(row.get("accuracy") is not None for rows in result["arms"].values() for row in rows)
    rows = []
    for arm, runs in result["arms"].items():
        done = [row for row in runs if row["loss"] is not None]
        accuracy = (percent(_mean(done, "accuracy"), 2),) if scored else ()
        against = result["comparisons"].get(f"loss_vs_{arm}")
        rows.append(
            (
                _words(arm), f"{len(done)} of {len(runs)}", number(_mean(done, "loss"), 4), *accuracy,
                number(_mean(done, "time"), 1), number(_mean(done, "train_seconds"), 2),
                number(_mean(done, "real_steps"), 1), percent(_mean(done, "predicted_share")),
                _target(result, arm), ratio(against, 4) if against else NONE,
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
            f"Means over seeds. Loss: {loss_unit(stored_words(result['job']))} on the {result['split']} split, lower "
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
            "cost more than plain steps by as much as the gain, or if the placebo is not shown to do worse. The other "
            f"ratios explain the result and are not corrected for multiple testing.{wanted}"
        ),
    )


def _explained(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    words = {
        "speedup": "speedup in training time (baseline / hybrid)",
        "step_speedup": "speedup in real steps (baseline / hybrid)",
        "flop_speedup": "speedup in FLOPs (baseline / hybrid)",
        "real_step_cost": "cost of a real step (hybrid / plain training, timed in the same process)",
    }
    return {
        words.get(name, f"loss (hybrid / {_words(name).removeprefix('loss vs ')})"): found
        for name, found in result["comparisons"].items()
    }


def configurations(result: Mapping[str, Any]) -> list[Table]:
    """Whole configurations in raw seconds: their cost, their ratios, and their steps and seconds by phase."""
    return [_costs(result), _raw_ratios(result), _phases(result)]


def _costs(result: Mapping[str, Any]) -> Table:
    measures = [
        name
        for name in ("train_seconds", "step_seconds", "tokens_per_second", "loss", "accuracy", "most_memory_bytes")
        if any(run[name] is not None for entry in result["configurations"] for run in entry["runs"])
    ]
    words = {
        "train_seconds": "training time", "step_seconds": "time per nominal step", "tokens_per_second": _rate(result),
        "most_memory_bytes": "peak memory",
    }  # fmt: skip
    return Table(
        title="Configurations",
        columns=("configuration", "settings changed from the job", *(words.get(name, name) for name in measures)),
        rows=tuple(
            (
                _words(entry["name"]),
                ", ".join(f"{path} {value}" for path, value in entry["settings"].items()) or NONE,
                *(OURS[name](entry) for name in measures),
            )
            for entry in result["configurations"]
        ),
        note=(
            "Means over seeds; times in raw seconds, because another batch size or precision changes the cost of a "
            "step. The configurations of one seed were started together, in an order that rotates over the seeds. Rows "
            "marked plain: the settings of the row above without prediction. Memory on a CPU: what the process held, "
            "read after every 16th step; it may include earlier runs of that process. On a GPU: the allocator's peak."
        ),
    )


def _rate(result: Mapping[str, Any]) -> str:
    return f"{stored_words(result['job'])['unit']}s/s"


def _raw_ratios(result: Mapping[str, Any]) -> Table:
    names = ("speedup_vs_baseline", "speedup_vs_plain", "throughput_vs_baseline", "loss_vs_baseline", "loss_vs_plain")
    return Table(
        title="Configurations relative to the baseline and to the same settings without prediction",
        columns=("configuration", *map(_words, names), "net speedup"),
        rows=tuple(
            (
                _words(entry["name"]),
                *(ratio(found) if (found := entry["ratios"].get(name)) else NONE for name in names),
                OURS["net_speedup"](entry),
            )
            for entry in result["configurations"]
            if entry["name"] != "baseline"
        ),
        note=(
            f"Paired by seed, {result['level']:.1%} t-intervals of log ratios. Speedups are ratios of raw training "
            "seconds: above 1 is faster. A loss ratio below 1 is better. Rows marked plain show the effect of "
            "precision and batch size; the ratios vs plain show the effect of predicting alone. The net speedup "
            "compares with stopping early. It exists only for configurations that differ from the baseline in "
            "prediction alone, since no frontier was trained for the others."
        ),
    )


def _phases(result: Mapping[str, Any]) -> Table:
    rows = [
        (_words(entry["name"]), phase, OURS[f"share:{phase}"](entry), OURS[f"step:{phase}"](entry))
        for entry in result["configurations"]
        if entry["predicts"]
        for phase in PHASES
    ]
    return Table(
        title="Steps and step times by phase",
        columns=("configuration", "phase", "share of steps", "time per step"),
        rows=tuple(rows),
        note="Means over seeds; times in raw seconds.",
    )


def published(result: Mapping[str, Any]) -> tuple[Table, str] | None:
    """The published numbers next to all our configurations, and a remark on what differs.

    None if the job's ``published`` names no table.
    """
    name = result["job"]["published"]
    if name is None:
        return None
    known = PUBLISHED[name]
    mine = {entry["name"]: entry for entry in result["configurations"]}
    further = [name for name in mine if name not in known.arms.values()]
    rows = [
        (
            quantity.name,
            *(value or NONE for value in quantity.values or ("",) * len(known.arms)),
            *(_ours(mine.get(ours), quantity.ours) for ours in (*known.arms.values(), *further)),
        )
        for quantity in known.rows
    ]
    here = [*known.arms, *map(_words, further)]
    columns = ("quantity", *(f"{arm}, published" for arm in known.arms), *(f"{arm}, here" for arm in here))
    note = f"Published: {known.source}. Here: means over {len(result['seeds'])} seeds."
    job = result["job"]
    title = f"{known.title}, as published; here {job['model']}, {job['steps']} steps, {job['corpus']}"
    return Table(title=title, columns=columns, rows=tuple(rows), note=note), known.remark


def _ours(entry: Mapping[str, Any] | None, quantity: str | None) -> str:
    """``quantity`` of our configuration as cell text; a dash if either does not exist."""
    return NONE if entry is None or quantity is None else OURS[quantity](entry)


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
                _words(name), _words(row["setting"]), _value(row["value"]), number(row["loss"], 4),
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
                number(_mean(done, "loss"), 4), number(_mean(done, "time"), 1), number(_mean(done, "real_steps"), 1),
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


def _words(name: str) -> str:
    return name.replace("_", " ")


def _mean(runs: Runs, name: str) -> float | None:
    found = [run[name] for run in runs if run.get(name) is not None]
    return sum(found) / len(found) if found else None


def _seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _size(value: float | None) -> str:
    return NONE if value is None else f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _reduction(entry: Mapping[str, Any]) -> float | None:
    first, last = (_mean(entry["runs"], f"{which}_train_loss") for which in ("first", "last"))
    return None if first is None or last is None else 1 - last / first


def _speedup(entry: Mapping[str, Any]) -> str:
    found = entry["ratios"].get("speedup_vs_baseline")
    return "1" if entry["name"] == "baseline" else NONE if found is None else ratio(found, 2)


def _net(entry: Mapping[str, Any]) -> str:
    found = entry.get("net_speedup")  # comparisons of older versions have none
    return ratio(found) if found else NONE


def _in_phase(name: str, phase: str, text: Callable[[float | None], str]) -> Callable[[Mapping[str, Any]], str]:
    """Mean over the seeds that had the phase; a dash for configurations that do not predict."""

    def shown(entry: Mapping[str, Any]) -> str:
        found = [run[name][phase] for run in entry["runs"] if phase in run[name]]
        return text(sum(found) / len(found) if found and entry["predicts"] else None)

    return shown


def _shown(name: str, text: Callable[[float | None], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda entry: text(_mean(entry["runs"], name))


OURS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "train_seconds": _shown("train_seconds", _seconds),
    "step_seconds": _shown("step_seconds", _seconds),
    "speedup": _speedup,
    "net_speedup": _net,
    "tokens_per_second": _shown("tokens_per_second", lambda value: number(value, 0)),
    "nominal_tokens_per_second": _shown("nominal_tokens_per_second", lambda value: number(value, 0)),
    "loss": _shown("loss", lambda value: number(value, 4)),
    "accuracy": _shown("accuracy", lambda value: percent(value, 2)),
    "predicted_share": _shown("predicted_share", percent),
    "diverged": lambda entry: str(sum(run["diverged"] for run in entry["runs"])),
    "first_train_loss": _shown("first_train_loss", lambda value: number(value, 3)),
    "last_train_loss": _shown("last_train_loss", lambda value: number(value, 3)),
    "loss_reduction": lambda entry: percent(_reduction(entry)),
    "first_memory_bytes": _shown("first_memory_bytes", _size),
    "last_memory_bytes": _shown("last_memory_bytes", _size),
    "most_memory_bytes": _shown("most_memory_bytes", _size),
    **{f"share:{phase}": _in_phase("phase_shares", phase, percent) for phase in PHASES},
    **{f"step:{phase}": _in_phase("phase_step_seconds", phase, _seconds) for phase in PHASES},
}
"""By quantity, its cell text for a configuration's entry in ``comparison.json``: the mean over seeds, or a dash."""
