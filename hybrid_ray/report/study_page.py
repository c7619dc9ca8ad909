"""The report of a study: ``report.html`` (a single self-contained file) and ``report.md`` with ``plots/*.png``.

Both begin with the headline and the plot of the trials over the frontier. The report of an unfinished study shows its
results so far.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from hybrid_ray.report.headline import Headline, confirmed_candidate, counted, headline
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.report.pages import shown_directory, write_pages
from hybrid_ray.report.plots.study import Plot, Section, shown
from hybrid_ray.report.rescoring import rescore_command
from hybrid_ray.report.tables import runs as tables_runs
from hybrid_ray.report.tables import study as tables
from hybrid_ray.report.tables.calibration import study_calibration
from hybrid_ray.report.tables.cells import loss_unit, number, percent, ratio, with_error
from hybrid_ray.report.tables.trials import backward_share_of, ceilings_of, trials_table
from hybrid_ray.report.text_samples import samples

__all__ = ["GLOSSARY", "write_report"]

GLOSSARY = (
    ("nominal step", "A step of the run, real or predicted. The learning-rate schedule counts nominal steps."),
    ("real step", "A step with a gradient: data, forward, backward, optimizer."),
    ("predicted step", "A step that moves the weights along a predicted displacement; no gradient, no batch is read."),
    ("plain step", "An ordinary training step, timed in the same process. It is the unit of training time."),
    (
        "phase",
        "Warmup and Full: real steps. Predict: predicted steps. Correct: real steps after, or in between, predicted "
        "ones.",
    ),
    ("baseline", "Plain training: every nominal step is real, with the same schedule, seed and data order."),
    ("speedup", "Training time of the baseline / of the run, at the same number of nominal steps. Above 1 is faster."),
    ("degradation", "Relative rise of the held-out loss over the baseline's. Lower is better, below 0 an improvement."),
    ("score", "Speedup minus a penalty for degradation beyond the tolerance. By itself it rewards stopping early."),
    ("stopping early", "Plain training with fewer steps, its learning rate fully decayed at the end."),
    ("frontier", "The lowest loss that stopping early reaches in a given training time."),
    (
        "net speedup",
        "Training time the frontier needs for the run's final loss / the run's training time. Above 1 is a gain over "
        "stopping early with the job's own optimizer.",
    ),
    ("excess", "The score minus the score of stopping early at equal training time. Above 0 is better than that."),
    (
        "peer",
        "Another optimizer, trained without prediction and tuned like the baseline. Predicting pays only if it beats "
        "every peer.",
    ),
    (
        "front",
        "The Pareto front: trials that no other trial beats in both speedup and degradation. Being on it is no gain, "
        "since stopping early trades loss for time too.",
    ),
    ("equal steps", "Control: stopping early with as many real steps as the hybrid took."),
    ("placebo", "Control: the hybrid's phases, but predicted steps do nothing."),
    (
        "confidence",
        "The probability that at the end of the coming cycle (jump, then its real steps) the loss is within "
        "payback_tolerance of what the trend of real steps alone would give. If it is, the jump was paid back.",
    ),
    (
        "Brier score, AUROC",
        "Mean squared difference between confidence and outcome (1: paid back, 0: not). Probability that a jump that "
        "was paid back had a higher confidence than one that was not.",
    ),
    ("inert", "A trial that predicts less than 5 % of its steps, so it does not test prediction."),
    ("test split", "Held-out data that no choice was based on. Claims rest on it and on fresh seeds."),
    ("95 % interval", "Student's t confidence interval of the mean log ratio, with runs paired by seed."),
)


def write_report(directory: Path | str, *, ended: str | None = None, note: str | None = None) -> Headline:
    """Write ``report.html``, ``report.md`` and the plots of a study, replacing old ones. Returns the headline.

    Args:
        ended: the event that is going to be stored once the report is written (``finished``).
        note: of that event.

    Raises:
        StoreError: the directory is not a study, or it cannot be written; files that could not be replaced are kept.
    """
    study = load_study(directory)
    if ended is not None:
        study = study.ended(ended, note)
    found = headline(study)
    figures = {plot.name: plot.draw(study) for plot in shown(study)}
    write_pages(study.directory, "report", _content(study, found), figures)
    return found


def _content(study: Study, found: Headline) -> dict[str, Any]:
    """The values that both templates use."""
    return {
        "study": study,
        "headline": found,
        "finished": study.finished,
        "facts": _facts(study),
        "tiles": _tiles(study),
        "notes": list(study.rescoring.notes(study.job.objective)) if study.rescoring else [],
        "plots": _plots(study),
        "confirmation": tables.confirmation_tables(study),
        "speedups": tables.speedups(study),
        "settings": tables.best_settings(study),
        "prediction": tables_runs.prediction(study),
        "calibration": study_calibration(study),
        "samples": samples(study),
        "trials": trials_table(study),
        "costs": [
            table
            for make in (
                tables_runs.phases,
                tables_runs.parts,
                tables_runs.accounting,
                tables_runs.device_by_phase,
                tables_runs.memory,
            )
            if (table := make(study)) is not None
        ],
        "environment": tables_runs.environment(study),
        "glossary": GLOSSARY,
        "directory": _shown_directory(study),
        "commands": _commands(study),
    }


def _plots(study: Study) -> dict[str, list[Plot]]:
    """The plots of each section of the report."""
    return {section: [plot for plot in shown(study) if plot.section == section] for section in get_args(Section)}


def _shown_directory(study: Study) -> str:
    """The study's directory, as `shown_directory`. A rescored one lies in that of its runs."""
    rescored = f"/rescored/{study.directory.name}" if study.rescoring else ""
    return shown_directory(study.runs) + rescored


def _commands(study: Study) -> list[tuple[str, str]]:
    """Commands that reproduce the report or the study, each with what it does."""
    directory = _shown_directory(study)
    report = (f"hybrid-ray report {directory}", "write this report again from the stored results")
    if study.rescoring:
        again = rescore_command(shown_directory(study.runs), study.rescoring.searched, study.job.objective)
        return [report, (again, "compute these scores again from the stored runs")]
    other = "score" if study.job.objective.mode == "net" else "net"
    return [
        report,
        (f"hybrid-ray resume {directory}", "continue a study that was stopped"),
        (
            f"hybrid-ray rescore {directory} --set objective.mode={other}",
            "score the stored trials by another objective, without training",
        ),
        (f"hybrid-ray run {directory}/job.yaml", "run the whole study again"),
    ]


def _facts(study: Study) -> list[str]:
    """What was run, in short phrases: model, data, steps, predictor, objective, trials."""
    job, ended = study.job, counted(study.trials)
    states = ended["state"].value_counts()
    words = (("COMPLETE", "finished"), ("PRUNED", "stopped early or diverged"), ("FAIL", "failed"))
    counts = ", ".join(f"{states[state]} {word}" for state, word in words if state in states)
    return [
        f"model {study.words['model']}",
        study.words["data"],
        f"{job.train.steps} nominal steps of {job.train.batch_size} {study.words['batch_of']}",
        f"predictor {job.hybrid.predictor.name}",
        _SEARCHED[job.objective.mode],
        f"{len(ended)} trials" + (f" ({counts})" if counts else ""),
    ]


_SEARCHED = {
    "score": "searched for the score",
    "net": "searched for net speedup",
    "pareto": "searched for speedup and degradation",
}


def _tiles(study: Study) -> list[Mapping[str, str]]:
    """The key numbers of the trial in the headline, net speedup and score side by side. Empty without a best trial.

    The net speedup is the confirmed one if there is one; all other numbers are from the search.
    """
    confirmed, best, mode = confirmed_candidate(study.statistics, study.best), study.best, study.job.objective.mode
    if best is None:
        return []
    if confirmed is not None:
        best = study.trials[study.trials["number"] == confirmed["trial"]].iloc[0]
    free, forward = ceilings_of(best["predicted_share"], backward_share_of(study))
    worse = best["degradation"]
    searched = {
        "score": {"score": "search objective; speedup minus loss penalty"},
        "net": {"net speedup": "search objective; "},
        "pareto": {"speedup": "search objective; ", "val loss against the baseline": "search objective; "},
    }[mode]
    stopped = (
        "" if pd.isna(best["excess"]) else f"; stopping early at equal time scores {best['score'] - best['excess']:.2f}"
    )
    return [
        _net_tile(best, confirmed, searched.get("net speedup", "")),
        {
            "value": number(best["score"], 2),
            "name": "score",
            "note": searched.get("score", "speedup minus loss penalty") + stopped,
        },
        {
            "value": number(best["speedup"], 2, " ×"),
            "name": "speedup",
            "note": f"{searched.get('speedup', '')}over the baseline; upper bound {number(free)}"
            + (f", {number(forward)} if predicting took a forward pass" if forward else ""),
        },
        {
            "value": percent(best["predicted_share"], 0),
            "name": "steps predicted",
            "note": f"{best['predicted_steps']:.0f} of {best['steps']:.0f}",
        },
        {
            "value": ("+" if worse > 0 else "") + percent(worse),
            "name": "val loss against the baseline",
            "note": searched.get("val loss against the baseline", "")
            + f"{best['loss']:.4f} against {best['baseline_loss']:.4f} {loss_unit(study.words)}",
        },
    ]


def _net_tile(trial: pd.Series, confirmed: Mapping[str, Any] | None, searched: str) -> dict[str, str]:
    """The tile of the net speedup: the confirmed one, as in the headline, or else that of the search."""
    if confirmed is not None and confirmed["net_speedup"]["mean"] is not None:
        net = confirmed["net_speedup"]
        return {
            "value": number(net["mean"], 2, " ×"),
            "name": "net speedup, confirmed",
            "note": f"{ratio(net, 2)}, {net['n']} fresh seeds; over stopping early, above 1 is a gain",
        }
    known = pd.notna(trial["net_speedup"])
    return {
        "value": with_error(trial["net_speedup"], trial["net_error"], 2) + (" ×" if known else ""),
        "name": "net speedup",
        "note": searched
        + (
            "over stopping early, one seed; above 1 is a gain"
            if known
            else "unknown: the loss is outside the frontier's range"
        ),
    }
