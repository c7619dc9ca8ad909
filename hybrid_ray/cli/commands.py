"""What each command does on this machine. It imports what it needs, so that ``--help`` is quick."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ray.cli.exit_codes import FAILED, OK, STOPPED, WRONG
from hybrid_ray.errors import ConfigError

if TYPE_CHECKING:
    from hybrid_ray.config import JobConfig
    from hybrid_ray.study.pipeline import Outcome

__all__ = [
    "compare",
    "doctor",
    "extend",
    "init",
    "ladder",
    "plan",
    "report",
    "rescore",
    "resume",
    "run",
    "schema",
    "train",
]


def run(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job
    from hybrid_ray.study.pipeline import run_study

    job = read_job(options.job, options.set)
    return _climb(job) if job.ladder.rungs else _print_outcome(run_study(job, source=Path(options.job)))


def resume(options: argparse.Namespace) -> int:
    from hybrid_ray.ladder.directory import is_ladder, job_of
    from hybrid_ray.study.pipeline import resume_study

    if is_ladder(Path(options.study)):
        if options.fork:
            raise ConfigError(f"{options.study} is a ladder, which --fork cannot copy: give a job with another name")
        return _climb(job_of(Path(options.study)))
    return _print_outcome(resume_study(Path(options.study), fork=options.fork))


def ladder(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job

    return _climb(read_job(options.job, options.set))


def _climb(job: "JobConfig") -> int:
    from hybrid_ray.ladder.climb import climb

    return _print_outcome(climb(job, say=lambda text: print(text, file=sys.stderr, flush=True)))


def extend(options: argparse.Namespace) -> int:
    from hybrid_ray.study.pipeline import extend_study

    return _print_outcome(extend_study(Path(options.study), trials=options.trials))


def _print_outcome(outcome: "Outcome") -> int:
    print(outcome.text)
    return {"finished": OK, "failed": FAILED, "stopped": STOPPED}[outcome.status]


def plan(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job
    from hybrid_ray.study.plan import plan, plan_memory

    job = _without_training_a_tokenizer(read_job(options.job, options.set))
    if job.ladder.rungs:
        return _plan_ladder(job, options.memory)
    if options.memory is None:
        print(plan(job).text)
        return OK
    found = plan_memory(job, gibibytes=options.memory)
    print(found.text)
    return OK if found.fits else WRONG


def _without_training_a_tokenizer(job: "JobConfig") -> "JobConfig":
    """The job on random tokens if the text would have to be prepared for many minutes, which a plan does not need."""
    from dataclasses import replace

    from hybrid_ray.config.task import TEXT, our_task
    from hybrid_ray.data.corpus import quick_to_prepare

    if our_task(job.task, job.model, job.data) is not TEXT:
        return job
    data = quick_to_prepare(job.data)
    if data is not job.data:
        print(f"no tokenizer has been trained on data.corpus {job.data.corpus!r} yet: planned with a full vocabulary")
    return replace(job, data=data)


def _plan_ladder(job: "JobConfig", gibibytes: float | None) -> int:
    from hybrid_ray.ladder.plan import plan_ladder, plan_ladder_memory

    if gibibytes is None:
        print(plan_ladder(job).text)
        return OK
    plans = plan_ladder_memory(job, gibibytes=gibibytes)
    print("\n\n".join(f"{name}\n{found.text}" for name, found in plans.items()))
    return OK if all(found.fits for found in plans.values()) else WRONG


def train(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job
    from hybrid_ray.study.commands import train_once
    from hybrid_ray.tasks import load_task

    job, directory = read_job(options.job, options.set), Path(options.out)
    result = train_once(job, arm=options.arm, directory=directory)
    if result.status == "stopped":
        print(f"Stopped. Run the same command again to continue from the last checkpoint in {directory}, if it has one")
        return STOPPED
    if result.status != "finished":
        print(f"error: the run ended as {result.status}: {result.error}", file=sys.stderr)
        return FAILED
    found, share = result.heldout["val"], result.predicted_share
    task = load_task(job.run())
    others = [f"accuracy {found.accuracy:.2%}"] if found.accuracy is not None else []
    others += [f"{name} {value:.4g}" for name, value in found.metrics.items()]
    if not others and task.measure == "nats":
        others = [f"perplexity {math.exp(min(found.loss, 700)):.2f}"]
    shown = f"{task.measure} per {task.unit}" + (f" ({', '.join(others)})" if others else "")
    print(f"held-out loss {found.loss:.4f} {shown}, {share:.0%} of the steps predicted")
    print(
        f"{result.train_seconds:.1f} s of training, the time of {result.time:.0f} plain steps (data, forward, backward "
        f"and optimizer, without the loop around them); results in {directory}"
    )
    return OK


def compare(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job
    from hybrid_ray.study.commands import compare_arms
    from hybrid_ray.study.stopping import Stopped

    job = read_job(options.job, options.set)
    directory = Path(options.out or Path("comparisons") / job.name)
    try:
        compare_arms(job, directory=directory)
    except Stopped:
        print(f"Stopped. Run the same command again to continue with the runs in {directory}")
        return STOPPED
    print((directory / "comparison.txt").read_text(encoding="utf-8"), end="")
    print(f"\n{directory / 'report.html'}")
    return OK


def report(options: argparse.Namespace) -> int:
    from hybrid_ray.ladder.directory import is_ladder
    from hybrid_ray.ladder.page import write_ladder
    from hybrid_ray.report.comparison_page import is_comparison, write_comparison
    from hybrid_ray.report.study_page import write_report

    directory = Path(options.study)
    if is_ladder(directory):
        print(write_ladder(directory))
    else:
        print(write_comparison(directory) if is_comparison(directory) else write_report(directory).text)
    print(f"\n{directory / 'report.html'}")
    return OK


def rescore(options: argparse.Namespace) -> int:
    from hybrid_ray.report.headline import headline
    from hybrid_ray.report.load import load_study
    from hybrid_ray.study.rescore import rescore

    directory = rescore(Path(options.study), options.set)
    print(headline(load_study(directory)).text)
    print(f"\n{directory / 'report.html'}")
    return OK


def schema(options: argparse.Namespace) -> int:
    from hybrid_ray.config.schema import job_schema, settings_page

    print(
        settings_page() if options.markdown else json.dumps(job_schema(), indent=2),
        end="" if options.markdown else "\n",
    )
    return OK


def init(options: argparse.Namespace) -> int:
    from hybrid_ray.starter import write_starter

    job, *others = write_starter(Path(options.path), task=options.task)
    for path in (job, *others):
        print(f"wrote {path}")
    print(f"Next: hybrid-ray plan {job}, then hybrid-ray run {job}")
    return OK


def doctor(options: argparse.Namespace) -> int:
    from hybrid_ray.doctor import examine

    findings = examine()
    for finding in findings:
        print(finding.line)
    return FAILED if any(finding.state == "bad" for finding in findings) else OK
