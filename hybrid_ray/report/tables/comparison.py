"""The tables of a comparison, as text in cells: the same for report.html and report.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.config.task import stored_words
from hybrid_ray.report.tables.published import PUBLISHED
from hybrid_ray.report.tables.study import NONE, Table, number, percent

__all__ = ["arms", "configurations", "ends", "findings", "peers", "published", "ratio", "ratios", "tuning"]

PHASES = ("warmup", "full", "predict", "correct")

Runs = Sequence[Mapping[str, Any]]


def ratio(found: Mapping[str, Any], digits: int = 3) -> str:
    """``0.930 (0.900-0.960)``; an end that is not known is a question mark."""
    return NONE if found["mean"] is None else f"{found['mean']:.{digits}f} ({ends(found, digits)})"


def ends(found: Mapping[str, Any], digits: int = 3) -> str:
    """The two ends of an interval."""
    if found["mean"] is None:
        return f"no interval from {found['n']} seeds"
    return "–".join("?" if found[end] is None else f"{found[end]:.{digits}f}" for end in ("low", "high"))


def findings(result: Mapping[str, Any]) -> list[str]:
    """What a reader must not miss: what never predicts, a learning rate at the edge of those tried, runs left out."""
    return [*_silent(result), *_edge(result), *_lost(result)]


def _silent(result: Mapping[str, Any]) -> Iterator[str]:
    for entry in result["configurations"]:
        if entry["predicts"] and all(run["predicted_share"] == 0 for run in entry["runs"]):
            threshold = entry["settings"].get("hybrid.confidence_threshold", result["job"]["confidence_threshold"])
            highest = max(run["highest_confidence"] or 0.0 for run in entry["runs"])
            yield (
                f"{_words(entry['name'])} never predicted: its confidence rose to {highest:.2f} at most and the "
                f"threshold is {threshold:g}. Its numbers are those of plain training with the method's overhead."
            )


def _edge(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["tuning"]:
        yield "The learning rate was not tuned: a baseline at its best rate may do better than this one."
    for name, tuned in _all_tuning(result).items():
        for setting in tuned["at_edge"]:
            best = _value(tuned["best"][setting])
            yield f"{_words(name)}: the best {_words(setting)}, {best}, is at the edge of those tried."


def _all_tuning(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Of the baseline, the hybrid and the peers, by name."""
    return {
        **result["tuning"],
        **{optimizer_title(peer["name"]): peer["tuning"] for peer in result["peers"] if peer["tuning"]},
    }


def _lost(result: Mapping[str, Any]) -> Iterator[str]:
    """Runs by why they did not finish, or were left out."""
    reasons: dict[str, list[str]] = {}
    for arm, rows in result["arms"].items():
        for row in rows:
            if row["loss"] is None:
                reasons.setdefault(row["error"] or row["status"], []).append(f"{_words(arm)} (seed {row['seed']})")
    yield from (f"Without a result: {', '.join(runs)}. {reason}." for reason, runs in reasons.items())


def arms(result: Mapping[str, Any]) -> Table:
    """One row an arm: what it cost and what it reached."""
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
        title="Arms",
        columns=(
            "arm", "seeds", "loss", *(("accuracy",) if scored else ()), "time (plain steps)", "seconds (raw)",
            "real steps", "predicted", "time to target", "hybrid's loss over this arm's",
        ),
        rows=tuple(rows),
        note=(
            f"Means over seeds, on the {result['split']} split; ratios are paired by seed, with {result['level']:.1%} "
            "intervals. Time to target: to the baselines' mean loss on the val split plus the tolerance (median; "
            "never: missed). It is read off the losses along the way, whose schedules have not decayed: no frontier."
        ),
    )  # fmt: skip


def _target(result: Mapping[str, Any], arm: str) -> str:
    if result["time_to_target"] is None:
        return NONE
    median = result["time_to_target"]["arms"][arm]["median"]
    return "never" if median is None else f"{median:.1f}"


def ratios(result: Mapping[str, Any]) -> Table:
    """The net speedup, then everything that explains it."""
    plan = result["planning"]
    found = {
        "net speedup, over stopping earlier": result["net_speedup"],
        "loss ratio at equal time (stopping earlier / hybrid)": result["net_speedup"]["advantage"],
        **_explained(result),
    }
    needed = plan["seeds_needed"]
    looks = ", ".join(map(str, result["interim_analyses"]["seeds"]))
    wanted = f" To find {plan['effect']:.0%} of time with {plan['power']:.0%} power: {needed} seeds." if needed else ""
    return Table(
        title="The hybrid in ratios",
        columns=("ratio", "mean and interval", "p", "seeds", "remarks"),
        rows=tuple(
            (name, ratio(one, 4), number(one["p"], 4), str(one["n"]), one["note"] or NONE)
            for name, one in found.items()
        ),
        note=(
            f"The verdict asks that the first two lie on one side of 1 ({result['level']:.1%} intervals at this look, "
            f"of those planned at {looks} seeds; their p is that of the second). A gain is refused where the hybrid's "
            "real steps cost as much more, or where a placebo is not shown to do worse. The others explain it, "
            f"uncorrected.{wanted}"
        ),
    )


def _explained(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    words = {
        "speedup": "speedup over the baseline, in plain steps",
        "step_speedup": "the same in real steps",
        "flop_speedup": "the same in FLOPs",
        "real_step_cost": "cost of its real steps, in plain steps measured apart",
    }
    return {
        words.get(name, _words(name).replace("loss vs", "loss over that of")): found
        for name, found in result["comparisons"].items()
    }


def configurations(result: Mapping[str, Any]) -> list[Table]:
    """Whole configurations in raw seconds: what they cost, their ratios, and where steps and seconds went."""
    return [_costs(result), _raw_ratios(result), _phases(result)]


def _costs(result: Mapping[str, Any]) -> Table:
    measures = [
        name
        for name in ("train_seconds", "step_seconds", "tokens_per_second", "loss", "accuracy", "most_memory_bytes")
        if any(run[name] is not None for entry in result["configurations"] for run in entry["runs"])
    ]
    words = {
        "train_seconds": "seconds", "step_seconds": "a nominal step", "tokens_per_second": _rate(result),
        "most_memory_bytes": "most memory",
    }  # fmt: skip
    return Table(
        title="Configurations",
        columns=("configuration", "settings over the job's", *(words.get(name, name) for name in measures)),
        rows=tuple(
            (
                _words(entry["name"]),
                ", ".join(f"{path} {value}" for path, value in entry["settings"].items()) or NONE,
                *(OURS[name](entry) for name in measures),
            )
            for entry in result["configurations"]
        ),
        note=(
            "Means over seeds. Raw seconds: another batch or precision makes another step, so time can't be told in a "
            "run's own real steps here. Runs of one seed were started together, each seed with another one first, and "
            "ran one after another or side by side, as many as the machine has room for. The rows marked plain are the "
            "settings of the row above with prediction off. Memory on a CPU is what the process held between steps, "
            "every 16th, and it may have trained other runs before; on a GPU it is the allocator's own peak."
        ),
    )


def _rate(result: Mapping[str, Any]) -> str:
    return f"{stored_words(result['job'])['unit']}s/s"


def _raw_ratios(result: Mapping[str, Any]) -> Table:
    names = ("speedup_vs_baseline", "speedup_vs_plain", "throughput_vs_baseline", "loss_vs_baseline", "loss_vs_plain")
    return Table(
        title="Configurations against the baseline, and against themselves without prediction",
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
            f"Paired by seed, {result['level']:.1%} t-intervals on log ratios. Speedups are of raw training seconds: "
            "above 1 is faster; a loss ratio below 1 is better. What precision and batch bring stands in the rows "
            "marked plain; what predicting brings to a configuration is its speedup and loss against plain, together. "
            "Just stopping earlier is faster too: net speedups are over that, in plain steps, for configurations that "
            "are the baseline but for prediction. Nobody ran a frontier of the others."
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
        columns=("configuration", "phase", "share of steps", "a step"),
        rows=tuple(rows),
        note="Means over seeds, raw.",
    )


def published(result: Mapping[str, Any]) -> tuple[Table, str] | None:
    """The published table with all our configurations beside it, and what differs; None where the job names none."""
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
    """A dash where ours has no such quantity, or no such configuration."""
    return NONE if entry is None or quantity is None else OURS[quantity](entry)


def tuning(result: Mapping[str, Any]) -> Table | None:
    """What was tried for whom, and with what it ended; None where nothing was tuned."""
    tuned = _all_tuning(result)
    if not tuned:
        return None
    return Table(
        title="Tuning",
        columns=("of", "setting", "value", "loss on the val split", ""),
        rows=tuple(
            (
                _words(name), _words(row["setting"]), _value(row["value"]), number(row["loss"], 4),
                "best" if row["value"] == one["best"][row["setting"]] else "",
            )
            for name, one in tuned.items()
            for row in one["tried"]
        ),
        note="One run a value, on the job's own seed, with the settings above it at their best.",
    )  # fmt: skip


def peers(result: Mapping[str, Any]) -> Table:
    """Optimizers that skip nothing, each tuned like the baseline, for as long as the hybrid trains."""
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
            "optimizer", "seeds", "learning rate", "loss", "time (plain steps)", "real steps",
            "hybrid's net speedup over it", f"its own over {own}",
        ),
        rows=tuple(rows),
        note=(
            "Each was tuned by as many runs as the baseline, has a frontier of its own, and trains on every seed for "
            f"as long as the hybrid does. Time is told in plain steps of {own}, measured in turns in one process. "
            "Predicting pays only where the hybrid's net speedup over all of them lies above 1."
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
    """A mean over the seeds that had the phase; plain training has none to speak of."""

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
"""A configuration's entry of ``comparison.json`` in words, by quantity: means over seeds; a dash where it has none."""
