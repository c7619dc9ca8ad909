"""The tables of a comparison's configurations, in raw seconds, and of the published numbers they repeat."""

from collections.abc import Callable, Mapping
from typing import Any

from hybrid_ray.report.tables.cells import NONE, Table, mean_of, number, percent, ratio, words
from hybrid_ray.report.tables.published import PUBLISHED
from hybrid_ray.run_result import PHASES

__all__ = ["OURS", "configurations", "published"]


def configurations(result: Mapping[str, Any]) -> list[Table]:
    """Whole configurations in raw seconds: their cost, their ratios, and their steps and seconds by phase."""
    return [_costs(result), _raw_ratios(result), _phases(result)]


def _costs(result: Mapping[str, Any]) -> Table:
    measures = [
        name
        for name in ("train_seconds", "step_seconds", "tokens_per_second", "loss", "accuracy", "most_memory_bytes")
        if any(run[name] is not None for entry in result["configurations"] for run in entry["runs"])
    ]
    titles = {
        "train_seconds": "training time", "step_seconds": "time per nominal step", "tokens_per_second": _rate(result),
        "most_memory_bytes": "peak memory",
    }  # fmt: skip
    return Table(
        title="Configurations",
        columns=("configuration", "settings changed from the job", *(titles.get(name, name) for name in measures)),
        rows=tuple(
            (
                words(entry["name"]),
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
    return f"{result['job']['words']['unit']}s/s"


def _raw_ratios(result: Mapping[str, Any]) -> Table:
    names = ("speedup_vs_baseline", "speedup_vs_plain", "throughput_vs_baseline", "loss_vs_baseline", "loss_vs_plain")
    return Table(
        title="Configurations relative to the baseline and to the same settings without prediction",
        columns=("configuration", *map(words, names), "net speedup"),
        rows=tuple(
            (
                words(entry["name"]),
                *(ratio(entry["ratios"].get(name)) for name in names),
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
        (words(entry["name"]), phase, OURS[f"share:{phase}"](entry), OURS[f"step:{phase}"](entry))
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
    here = [*known.arms, *map(words, further)]
    columns = ("quantity", *(f"{arm}, published" for arm in known.arms), *(f"{arm}, here" for arm in here))
    note = f"Published: {known.source}. Here: means over {len(result['seeds'])} seeds."
    job = result["job"]
    title = f"{known.title}, as published; here {job['model']}, {job['steps']} steps, {job['corpus']}"
    return Table(title=title, columns=columns, rows=tuple(rows), note=note), known.remark


def _ours(entry: Mapping[str, Any] | None, quantity: str | None) -> str:
    """``quantity`` of our configuration as cell text; a dash if either does not exist."""
    return NONE if entry is None or quantity is None else OURS[quantity](entry)


def _seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _size(value: float | None) -> str:
    return NONE if value is None else f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _reduction(entry: Mapping[str, Any]) -> float | None:
    first, last = (mean_of(entry["runs"], f"{which}_train_loss") for which in ("first", "last"))
    return None if first is None or last is None else 1 - last / first


def _speedup(entry: Mapping[str, Any]) -> str:
    return "1" if entry["name"] == "baseline" else ratio(entry["ratios"].get("speedup_vs_baseline"), 2)


def _in_phase(name: str, phase: str, text: Callable[[float | None], str]) -> Callable[[Mapping[str, Any]], str]:
    """Mean over the seeds that had the phase; a dash for configurations that do not predict."""

    def shown(entry: Mapping[str, Any]) -> str:
        found = [run[name][phase] for run in entry["runs"] if phase in run[name]]
        return text(sum(found) / len(found) if found and entry["predicts"] else None)

    return shown


def _shown(name: str, text: Callable[[float | None], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda entry: text(mean_of(entry["runs"], name))


OURS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "train_seconds": _shown("train_seconds", _seconds),
    "step_seconds": _shown("step_seconds", _seconds),
    "speedup": _speedup,
    "net_speedup": lambda entry: ratio(entry.get("net_speedup")),  # comparisons of older versions have none
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
