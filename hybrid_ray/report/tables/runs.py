"""Tables of what runs cost: steps and seconds by phase and part, tokens, memory, and what it all ran in."""

from collections.abc import Iterator, Mapping
from typing import Any

from hybrid_ray.report.load import Study
from hybrid_ray.report.tables.study import NONE, Table, number, percent
from hybrid_ray.run_result import RunResult

__all__ = ["accounting", "device_by_phase", "environment", "memory", "parts", "phases", "prediction"]


def _shown(study: Study) -> dict[str, RunResult]:
    """The two runs to look into: the baseline and the best trial, where they have ended."""
    best = study.best
    found = {"baseline": study.result("baseline")}
    if best is not None:
        found[f"trial {best['number']:.0f} (best)"] = study.result(int(best["number"]))
    return {name: result for name, result in found.items() if result is not None}


def phases(study: Study) -> Table | None:
    """Steps and seconds by phase."""
    rows = [
        (
            name, phase, number(steps, 0), percent(steps / max(1, result.steps)), number(seconds, 2),
            percent(seconds / max(1e-9, result.train_seconds)), number(1e3 * seconds / max(1, steps), 3),
        )
        for name, result in _shown(study).items()
        for phase, steps in result.phase_steps.items()
        for seconds in (result.phase_seconds.get(phase, 0.0),)
        if steps
    ]  # fmt: skip
    columns = ("run", "phase", "steps", "share of steps", "seconds", "share of time", "ms a step")
    return Table(title="Steps and seconds by phase", columns=columns, rows=tuple(rows)) if rows else None


def parts(study: Study) -> Table | None:
    """Seconds by part: what real steps spend on data, forward, backward, optimizer; then the method's own."""
    rows = [
        (
            name, part, number(seconds, 2), percent(seconds / max(1e-9, result.train_seconds)),
            number(1e3 * seconds / max(1, result.predicted_steps if part == "predict" else result.real_steps), 3),
        )
        for name, result in _shown(study).items()
        for part, seconds in result.part_seconds.items()
        if seconds > 0
    ]  # fmt: skip
    columns = ("run", "part", "seconds", "share of time", "ms a step")
    note = "Predict: ms a predicted step; all others: ms a real step. Overhead is what the method does beside them."
    return Table(title="Seconds by part of a step", columns=columns, rows=tuple(rows), note=note) if rows else None


def accounting(study: Study) -> Table | None:
    """Tokens, and raw seconds beside calibrated time."""
    ended = [int(trial) for trial in study.trials.loc[study.trials["steps"] > 0, "number"]]
    results = [result for trial in ended if (result := study.result(trial)) is not None]
    rows = [_account(name, [result]) for name, result in _shown(study).items()]
    if results:
        rows.append(_account(f"{len(results)} of {len(study.trials)} trials, summed", results))
    return Table(
        title="Accounting",
        columns=(
            "run", "steps", "real", "predicted", "tokens read", "in gradients", "forward only",
            "training seconds (raw)", "ms a plain step", "time (plain steps)", "other seconds",
        ),
        rows=tuple(rows),
        note=(
            "Training seconds are synchronised and hold all that the method needs to decide. Other seconds: set-up, "
            "calibration, compilation, evaluation, checkpoints. Times are compared in plain steps: seconds divided by "
            "what a plain step took in the same process."
        ),
    ) if rows else None  # fmt: skip


def _account(name: str, results: list[RunResult]) -> tuple[str, ...]:
    seconds, time = sum(result.train_seconds for result in results), sum(result.time for result in results)
    counts = ("steps", "real_steps", "predicted_steps", "tokens_read")
    tokens = (sum(result.tokens.get(kind, 0) for result in results) for kind in ("gradient", "forward_only"))
    other = sum(sum(result.other_seconds.values()) for result in results)
    return (
        name,
        *(number(sum(getattr(result, name) for result in results), 0) for name in counts),
        *(number(count, 0) for count in tokens),
        number(seconds, 1),
        number(1e3 * seconds / max(1e-9, time), 2),
        number(time, 1),
        number(other, 1),
    )


def prediction(study: Study) -> Table | None:
    """How well the best trial predicted, by what the trainer itself measured."""
    best = study.best
    result = None if best is None else study.result(int(best["number"]))
    if result is None:
        return None
    found = result.statistics
    rows = [(words, number(found[name], digits)) for name, words, digits in _PREDICTION if found.get(name) is not None]
    rows += [
        (f"recovery: {name.replace('_', ' ')}", number(count, 0)) for name, count in found.get("events", {}).items()
    ]
    return (
        Table(title="How well the best trial predicted", columns=("measure", "value"), rows=tuple(rows))
        if rows
        else None
    )


_PREDICTION = (
    ("decisions", "chances to predict", 0),
    ("jumps", "predictions made", 0),
    ("accept_rate", "accept rate", 3),
    ("false_accept_rate", "false-accept rate: predictions that training then went against", 3),
    ("overshoots", "predictions that overshot (the next gradient pointed back)", 0),
    ("mean_cosine", "agreement: cosine of predicted and actual displacement, mean", 3),
    ("mean_alpha", "best step length along the prediction, alpha* (1 = as predicted), mean", 3),
    ("mean_error", "relative error of the prediction, mean (1 = predicting nothing)", 3),
    ("mean_error_after_jump", "the same right after a prediction", 3),
    ("displacement_ratio", "displacement over that of its real steps", 3),
    ("bytes_per_parameter", "predictor's buffers, bytes a parameter on the device", 1),
    ("host_bytes_per_parameter", "the same in host memory", 1),
)


def device_by_phase(study: Study) -> Table | None:
    """Peak memory by phase, and what else the device was seen doing in it (power, energy); nothing without a GPU."""
    found = [(name, phase, measures) for name, result in _shown(study).items() for phase, measures in _by_phase(result)]
    columns = list(dict.fromkeys(column for _, _, measures in found for column in measures))
    rows = tuple((name, phase, *(measures.get(column, NONE) for column in columns)) for name, phase, measures in found)
    note = (
        "Peaks are of what PyTorch allocated and reserved for the run. Power and energy are of the whole device, "
        "shared out by the seconds of each phase."
    )
    named = ("run", "phase", *columns)
    return Table(title="Memory and energy by phase", columns=named, rows=rows, note=note) if rows else None


def _by_phase(result: RunResult) -> Iterator[tuple[str, dict[str, str]]]:
    """Every measure that is kept phase by phase, by its name: those of the allocator, then those of the device."""
    kept = [(result.statistics.get("memory", {}), "peak {} bytes")]
    kept += [(values, "{}") for name, values in result.machine.items() if name.endswith("_phases")]
    for phase in dict.fromkeys(phase for values, _ in kept for phase in values):
        measures = {name.format(key): value for values, name in kept for key, value in values.get(phase, {}).items()}
        yield (
            phase,
            {key.replace("_", " ").replace(" bytes", ""): _amount(key, value) for key, value in measures.items()},
        )


def memory(study: Study) -> Table | None:
    """What was recorded of memory, its growth, power and compilation; nothing on a machine that records none."""
    rows = [
        (name, measure.replace("_bytes", "").replace("_", " "), _amount(measure, value))
        for name, result in _shown(study).items()
        for measure, value in (*_flat(_whole(result.machine)), (_SLOPE, result.statistics.get(_SLOPE)))
        if value or (measure == _SLOPE and value is not None)  # what was not compiled or not seen is a 0
    ]
    columns = ("run", "measure", "value")
    return Table(title="Memory and device", columns=columns, rows=tuple(rows)) if rows else None


_SLOPE = "memory_bytes_a_step"


def _whole(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if not name.endswith("_phases")}


def _amount(measure: str, value: Any) -> str:
    if isinstance(value, bool | str | list):
        return _text(measure, value)
    if measure == _SLOPE:
        return f"{value:+,.1f} bytes a step"
    if "bytes" in measure:
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:,.4g}"


def environment(study: Study) -> Table | None:
    """What the study ran in."""
    known = {name: value for name, value in study.environment.items() if name != "identity"}
    rows = tuple((name.replace("_", " "), _text(name, value)) for name, value in _flat(known))
    return Table(title="Environment", columns=("", ""), rows=rows) if rows else None


def _flat(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name} ")
        else:
            yield f"{place}{name}", value


def _text(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return NONE if value is None else str(value)
