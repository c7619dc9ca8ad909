"""Tables of what runs cost: steps and seconds by phase and part, tokens, memory, energy, and the environment."""

from collections.abc import Iterator, Mapping
from typing import Any

from hybrid_ray.report.load import Study
from hybrid_ray.report.tables.cells import NONE, Table, number, percent
from hybrid_ray.run_result import RunResult

__all__ = ["accounting", "device_by_phase", "environment", "memory", "parts", "phases", "prediction"]


def _shown(study: Study) -> dict[str, RunResult]:
    """The runs these tables describe: the baseline and the best trial, if they have ended."""
    best = study.best
    found = {"baseline": study.result("baseline")}
    if best is not None:
        found[f"trial {best['number']:.0f} (best)"] = study.result(int(best["number"]))
    return {name: result for name, result in found.items() if result is not None}


def phases(study: Study) -> Table | None:
    """Steps and seconds by phase; None before a run has ended."""
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
    columns = ("run", "phase", "steps", "share of steps", "training time (s)", "share of time", "ms per step")
    return Table(title="Steps and seconds by phase", columns=columns, rows=tuple(rows)) if rows else None


def parts(study: Study) -> Table | None:
    """Seconds by part: data, forward, backward and optimizer of real steps, then the method's own work."""
    rows = [
        (
            name, part, number(seconds, 2), percent(seconds / max(1e-9, result.train_seconds)),
            number(1e3 * seconds / max(1, result.predicted_steps if part == "predict" else result.real_steps), 3),
        )
        for name, result in _shown(study).items()
        for part, seconds in result.part_seconds.items()
        if seconds > 0
    ]  # fmt: skip
    columns = ("run", "part", "training time (s)", "share of time", "ms per step")
    note = (
        "ms per step: per predicted step for predict, per real step for all other parts. Overhead: the method's own "
        "work in real steps, such as averaging displacements."
    )
    return Table(title="Seconds by part of a step", columns=columns, rows=tuple(rows), note=note) if rows else None


def accounting(study: Study) -> Table | None:
    """Steps, tokens and times of the baseline, the best trial, and all trials together."""
    ended = [int(trial) for trial in study.trained.loc[study.trained["steps"] > 0, "number"]]
    results = [result for trial in ended if (result := study.result(trial)) is not None]
    rows = [_account(name, [result]) for name, result in _shown(study).items()]
    if results:
        rows.append(_account(f"{len(results)} of {len(study.trained)} trials, summed", results))
    unit = f"{study.words['unit']}s"
    return Table(
        title="Steps, data and time",
        columns=(
            "run", "nominal steps", "real steps", "predicted steps", f"{unit} read", f"{unit} with gradient",
            f"{unit} forward only", "training time (s)", "ms per plain step", "training time (plain steps)",
            "other time (s)",
        ),
        rows=tuple(rows),
        note=(
            "Training time is measured with the device synchronised and includes the method's own work. Other time: "
            "set-up, calibration, compilation, evaluation, checkpoints. Runs are compared in plain steps: training "
            "seconds divided by what data, forward, backward and optimizer of a real step took in the same run, so "
            "that a busy machine does not change the result. The loop around these adds to short steps, in every arm."
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
    """How well the best trial predicted (`HybridTrainer.measures`); None without a finished trial that predicts."""
    best = study.best
    result = None if best is None else study.result(int(best["number"]))
    if result is None:
        return None
    found = result.statistics
    rows = [(words, number(found[name], digits)) for name, words, digits in _PREDICTION if found.get(name) is not None]
    rows += [
        (f"recovery: {name.replace('_', ' ')}", number(count, 0)) for name, count in found.get("events", {}).items()
    ]
    note = (
        "Cosine, length, error and overshoots compare a prediction with the real steps after it. They do not show"
        " the gain of a predictor that does not forecast those steps: the jumps of slow_momentum reach further."
    )
    title = "Prediction quality of the best trial"
    return Table(title=title, columns=("measure", "value"), rows=tuple(rows), note=note) if rows else None


_PREDICTION = (
    ("decisions", "decisions whether to predict", 0),
    ("jumps", "decisions that predicted", 0),
    ("accept_rate", "accept rate: share of decisions that predicted", 3),
    ("false_accept_rate", "false-accept rate: share of predictions withdrawn or opposed by the next real steps", 3),
    ("overshoots", "predictions that overshot (the next gradient pointed back along them)", 0),
    ("mean_cosine", "cosine of predicted and actual displacement, mean (1 = same direction)", 3),
    ("mean_alpha", "best length along the predicted direction, alpha*, mean (1 = as predicted)", 3),
    ("mean_error", "relative error of the predicted displacement, mean (0 = exact, 1 = no better than no move)", 3),
    ("mean_error_after_jump", "relative error right after a prediction, mean", 3),
    ("displacement_ratio", "displacement of the whole run / the part of it that real steps made", 3),
    ("bytes_per_parameter", "predictor buffers on the device, bytes per parameter", 1),
    ("host_bytes_per_parameter", "predictor buffers in host memory, bytes per parameter", 1),
)


def device_by_phase(study: Study) -> Table | None:
    """Peak memory, power and energy by phase; None without a GPU."""
    found = [(name, phase, measures) for name, result in _shown(study).items() for phase, measures in _by_phase(result)]
    columns = list(dict.fromkeys(column for _, _, measures in found for column in measures))
    rows = tuple((name, phase, *(measures.get(column, NONE) for column in columns)) for name, phase, measures in found)
    note = (
        "Peak memory: what PyTorch allocated and reserved for this run. Power and energy: measured for the whole "
        "device and divided among phases in proportion to their time."
    )
    named = ("run", "phase", *columns)
    return Table(title="Memory and energy by phase", columns=named, rows=rows, note=note) if rows else None


def _by_phase(result: RunResult) -> Iterator[tuple[str, dict[str, str]]]:
    """Each phase with the measures kept for it, by name: first the allocator's, then the device's."""
    kept = [(result.statistics.get("memory", {}), "peak {} bytes")]
    kept += [(values, "{}") for name, values in result.machine.items() if name.endswith("_phases")]
    for phase in dict.fromkeys(phase for values, _ in kept for phase in values):
        measures = {name.format(key): value for values, name in kept for key, value in values.get(phase, {}).items()}
        yield (
            phase,
            {key.replace("_", " ").replace(" bytes", ""): _amount(key, value) for key, value in measures.items()},
        )


def memory(study: Study) -> Table | None:
    """Memory in use, its growth per step, power and compilation; None if nothing was recorded."""
    rows = [
        (name, _LABELS.get(measure, measure.replace("_bytes", "").replace("_", " ")), _amount(measure, value))
        for name, result in _shown(study).items()
        for measure, value in (*_flat(_whole(result.machine)), (_SLOPE, result.statistics.get(_SLOPE)))
        if value or (measure == _SLOPE and value is not None)  # a 0 elsewhere means: not compiled, or not measured
    ]
    columns = ("run", "measure", "value")
    return Table(title="Memory and device", columns=columns, rows=tuple(rows)) if rows else None


_SLOPE = "memory_bytes_a_step"
_LABELS = {_SLOPE: "memory growth"}


def _whole(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if not name.endswith("_phases")}


def _amount(measure: str, value: Any) -> str:
    if isinstance(value, bool | str | list):
        return _text(measure, value)
    if measure == _SLOPE:
        return f"{value:+,.1f} bytes per step"
    if "bytes" in measure:
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:,.4g}"


def environment(study: Study) -> Table | None:
    """Hardware and software that the study ran on; None if the study did not record them.

    Without the job and the text of the user's files, which environment.json holds too.
    """
    known = {name: value for name, value in study.environment.items() if name not in _NOT_SHOWN}
    rows = tuple((name.removesuffix("_bytes").replace("_", " "), _text(name, value)) for name, value in _flat(known))
    return Table(title="Environment", columns=("", ""), rows=rows) if rows else None


_NOT_SHOWN = ("identity", "job", "sources", "task")  # entries of environment.json: settings, files, names


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
