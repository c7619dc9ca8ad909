"""The report of a study: ``report.html`` (one file, loads nothing) and ``report.md`` with ``plots/*.png``.

Both lead with the headline and the trials over the frontier. An unfinished study gets a report of what there is.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from markupsafe import Markup

from hybrid_ray.report.generated_texts import samples
from hybrid_ray.report.headline import Headline, confirmed_candidate, counted, headline
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.report.pages import templates
from hybrid_ray.report.plots.study import Plot, Section, shown
from hybrid_ray.report.plots.style import png, svg
from hybrid_ray.report.rescoring import rescore_command
from hybrid_ray.report.tables import runs as tables_runs
from hybrid_ray.report.tables import study as tables
from hybrid_ray.storage.atomic import write_atomic

__all__ = ["GLOSSARY", "write_report"]

GLOSSARY = (
    ("nominal step", "A step of the run, real or predicted. The learning-rate schedule counts these."),
    ("real step", "A step with a gradient: data, forward, backward, optimizer."),
    ("predicted step", "A step along a predicted displacement: no gradient, and no batch is read."),
    ("plain step", "A step of ordinary training, timed in the same process. Times are counted in these."),
    ("baseline", "All nominal steps real, with the same schedule, seed and data order."),
    ("speedup", "The baseline's time divided by the run's, at the same number of nominal steps."),
    ("degradation", "How much higher the held-out loss is than the baseline's, relatively. Below 0 is better."),
    ("score", "Speedup less a penalty for degradation beyond the tolerance. By itself it rewards stopping early."),
    ("frontier", "The loss real steps alone reach in a given time, each run's learning rate fully decayed in it."),
    (
        "net speedup",
        "The frontier's time to the run's loss, over the run's time. Above 1 is a gain over the job's own optimizer.",
    ),
    ("excess", "The score less that of plain training stopped at the same time. Below 0, stopping early scores more."),
    (
        "peer",
        "An optimizer that skips nothing, tuned like the baseline. Predicting pays only where it beats all.",
    ),
    ("front", "The trials that no other beats in both speedup and degradation. Stopping earlier has such a front too."),
    ("equal steps", "Only as many real steps as the hybrid took, schedule rescaled: just stopping earlier."),
    ("placebo", "The hybrid's own phase decisions, but predicted steps do nothing."),
    ("inert", "A trial that predicts less than 5 % of its steps. It says nothing about predicting."),
    ("test split", "Held-out text that nothing was chosen on. Claims rest on it and on fresh seeds alone."),
    ("95 % interval", "Student's t-interval of the mean log ratio, runs paired by seed."),
)


def write_report(directory: Path | str) -> Headline:
    """Write the reports of a study anew from what is stored, and return what they lead with.

    Raises:
        StoreError: the directory is no study, or cannot be written (what was there before stays).
    """
    study = load_study(directory)
    found = headline(study)
    environment = templates()
    figures = {plot.name: plot.draw(study) for plot in shown(study)}
    content = _content(study, found)
    pictures = {name: Markup(svg(figure)) for name, figure in figures.items()}  # matplotlib escapes its own text
    page = environment.get_template("report.html.j2").render(content, pictures=pictures)
    for name, figure in figures.items():
        write_atomic(study.directory / "plots" / f"{name}.png", png(figure))
    write_atomic(study.directory / "report.md", environment.get_template("report.md.j2").render(content).encode())
    write_atomic(study.directory / "report.html", page.encode())
    return found


def _content(study: Study, found: Headline) -> dict[str, Any]:
    """What both templates show."""
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
        "samples": samples(study),
        "trials": tables.trials_table(study),
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
        "written": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _plots(study: Study) -> dict[str, list[Plot]]:
    """The pictures by the section they stand in."""
    return {section: [plot for plot in shown(study) if plot.section == section] for section in get_args(Section)}


def _shown_directory(study: Study) -> str:
    """As a reader would type it from where the study was run."""
    runs = study.runs
    return f"{runs.parent.name}/{study.name}" if runs.is_absolute() else str(study.directory)


def _commands(study: Study) -> list[tuple[str, str]]:
    """What makes the report, or the study, again; and what each does."""
    directory = _shown_directory(study)
    report = (f"hybrid-ray report {directory}", "this report anew, from what is stored")
    if study.rescoring:
        origin = directory.removesuffix(f"/rescored/{study.directory.name}")
        again = rescore_command(origin, study.rescoring.searched, study.job.objective)
        return [report, (again, "the scores anew, from what the study stored")]
    other = "score" if study.job.objective.mode == "net" else "net"
    return [
        report,
        (f"hybrid-ray resume {directory}", "go on with a study that was stopped"),
        (f"hybrid-ray rescore {directory} --set objective.mode={other}", "trials by another objective, no training"),
        (f"hybrid-ray run {directory}/job.yaml", "the whole study again"),
    ]


def _facts(study: Study) -> list[str]:
    """One line of what was run."""
    job, ended = study.job, counted(study.trials)
    states = ended["state"].value_counts()
    words = (("COMPLETE", "finished"), ("PRUNED", "stopped early or diverged"), ("FAIL", "failed"))
    counts = ", ".join(f"{states[state]} {word}" for state, word in words if state in states)
    return [
        f"model {study.words['model']}",
        study.words["data"],
        f"{job.train.steps} nominal steps of {job.train.batch_size} {study.words['batch_of']}",
        f"predictor {job.hybrid.predictor}",
        _SEARCHED[job.objective.mode],
        f"{len(ended)} trials" + (f" ({counts})" if counts else ""),
    ]


_SEARCHED = {
    "score": "searched for the score",
    "net": "searched for net speedup",
    "pareto": "searched for speedup and degradation",
}


def _tiles(study: Study) -> list[Mapping[str, str]]:
    """The numbers to see first, of the trial that the headline speaks of: net speedup and score side by side.

    Where it was confirmed the net speedup is the confirmed one; the others are of the search.
    """
    confirmed, best, mode = confirmed_candidate(study.statistics, study.best), study.best, study.job.objective.mode
    if best is None:
        return []
    if confirmed is not None:
        best = study.trials[study.trials["number"] == confirmed["trial"]].iloc[0]
    free, forward = tables.ceilings_of(best["predicted_share"], tables.backward_share(study))
    worse = best["degradation"]
    searched = {
        "score": {"score": "what was searched"},
        "net": {"net speedup": "searched, "},
        "pareto": {"speedup": "searched, ", "loss against the baseline": "searched: "},
    }[mode]
    stopped = "" if pd.isna(best["excess"]) else f"; stopping early {best['score'] - best['excess']:.2f}"
    return [
        _net_tile(best, confirmed, searched.get("net speedup", "")),
        {
            "value": tables.number(best["score"], 2),
            "name": "score",
            "note": searched.get("score", "speedup less lost quality") + stopped,
        },
        {
            "value": tables.number(best["speedup"], 2, " ×"),
            "name": "speedup",
            "note": f"{searched.get('speedup', '')}at most {tables.number(free)}"
            + (f"; {tables.number(forward)} with a forward" if forward else ""),
        },
        {
            "value": tables.percent(best["predicted_share"], 0),
            "name": "steps predicted",
            "note": f"{best['predicted_steps']:.0f} of {best['steps']:.0f}",
        },
        {
            "value": ("+" if worse > 0 else "") + tables.percent(worse),
            "name": "loss against the baseline",
            "note": searched.get("loss against the baseline", "")
            + f"{best['loss']:.4f} against {best['baseline_loss']:.4f} "
            + f"{study.words['measure']} a {study.words['unit']}",
        },
    ]


def _net_tile(trial: pd.Series, confirmed: Mapping[str, Any] | None, searched: str) -> dict[str, str]:
    """The confirmed net speedup, as the headline has it; that of the search while there is no other."""
    if confirmed is not None and confirmed["net_speedup"]["mean"] is not None:
        net = confirmed["net_speedup"]
        return {
            "value": tables.number(net["mean"], 2, " ×"),
            "name": "net speedup, confirmed",
            "note": f"{tables.short(net, 2)}, {net['n']} fresh seeds, against stopping earlier",
        }
    known = pd.notna(trial["net_speedup"])
    return {
        "value": tables.with_error(trial["net_speedup"], trial["net_error"], 2) + (" ×" if known else ""),
        "name": "net speedup",
        "note": searched + ("against stopping earlier, one seed" if known else "loss off the frontier"),
    }
