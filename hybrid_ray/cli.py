"""The command line. ``hybrid-ray COMMAND --help`` lists the arguments of each.

Exit codes: 0 done; 1 the run failed; 2 a wrong job or argument (every problem is listed, nothing was started);
143 stopped by SIGTERM or Ctrl-C and can be resumed.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.version import __version__

if TYPE_CHECKING:
    from hybrid_ray.config import JobConfig
    from hybrid_ray.study.pipeline import Outcome

__all__ = ["main"]

OK, FAILED, WRONG, STOPPED = 0, 1, 2, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: each run sets its own threads
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return FAILED
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        print("Nothing was started.", file=sys.stderr)
        return WRONG
    except HybridRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _run(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job
    from hybrid_ray.study.pipeline import run_study

    return _print_outcome(run_study(read_job(options.job, options.set), source=Path(options.job)))


def _resume(options: argparse.Namespace) -> int:
    from hybrid_ray.ladder.directory import is_ladder, job_of
    from hybrid_ray.study.pipeline import resume_study

    if is_ladder(Path(options.study)):
        if options.fork:
            raise ConfigError(f"{options.study} is a ladder, which --fork cannot copy: give a job with another name")
        return _climb(job_of(Path(options.study)))
    return _print_outcome(resume_study(Path(options.study), fork=options.fork))


def _ladder(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job

    return _climb(read_job(options.job, options.set))


def _climb(job: "JobConfig") -> int:
    from hybrid_ray.ladder.climb import climb

    return _print_outcome(climb(job, say=lambda text: print(text, file=sys.stderr, flush=True)))


def _extend(options: argparse.Namespace) -> int:
    from hybrid_ray.study.pipeline import extend_study

    return _print_outcome(extend_study(Path(options.study), trials=options.trials))


def _print_outcome(outcome: "Outcome") -> int:
    print(outcome.text)
    return {"finished": OK, "failed": FAILED, "stopped": STOPPED}[outcome.status]


def _plan(options: argparse.Namespace) -> int:
    from hybrid_ray.config.jobfile import read_job
    from hybrid_ray.study.plan import plan, plan_memory

    job = read_job(options.job, options.set)
    if job.ladder.rungs:
        return _plan_ladder(job, options.memory)
    if options.memory is None:
        print(plan(job).text)
        return OK
    found = plan_memory(job, gibibytes=options.memory)
    print(found.text)
    return OK if found.fits else WRONG


def _plan_ladder(job: "JobConfig", gibibytes: float | None) -> int:
    from hybrid_ray.ladder.plan import plan_ladder, plan_ladder_memory

    if gibibytes is None:
        print(plan_ladder(job).text)
        return OK
    plans = plan_ladder_memory(job, gibibytes=gibibytes)
    print("\n\n".join(f"{name}\n{found.text}" for name, found in plans.items()))
    return OK if all(found.fits for found in plans.values()) else WRONG


def _train(options: argparse.Namespace) -> int:
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
        f"{result.train_seconds:.1f} s of training, the time of {result.time:.0f} plain steps; results in {directory}"
    )
    return OK


def _compare(options: argparse.Namespace) -> int:
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


def _report(options: argparse.Namespace) -> int:
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


def _rescore(options: argparse.Namespace) -> int:
    from hybrid_ray.report.headline import headline
    from hybrid_ray.report.load import load_study
    from hybrid_ray.study.rescore import rescore

    directory = rescore(Path(options.study), options.set)
    print(headline(load_study(directory)).text)
    print(f"\n{directory / 'report.html'}")
    return OK


def _submit(options: argparse.Namespace) -> int:
    from hybrid_ray.ray_tune.submit import submit

    return submit(
        Path(options.job),
        address=options.address,
        overrides=options.set,
        token=os.environ.get("RAY_AUTH_TOKEN"),
        insecure=options.insecure,
    )


def _schema(options: argparse.Namespace) -> int:
    from hybrid_ray.config.schema import job_schema, settings_page

    print(
        settings_page() if options.markdown else json.dumps(job_schema(), indent=2),
        end="" if options.markdown else "\n",
    )
    return OK


def _init(options: argparse.Namespace) -> int:
    from hybrid_ray.starter import write_starter

    job, *others = write_starter(Path(options.path), task=options.task)
    for path in (job, *others):
        print(f"wrote {path}")
    print(f"Next: hybrid-ray plan {job}, then hybrid-ray run {job}")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from hybrid_ray.doctor import examine

    findings = examine()
    for finding in findings:
        print(finding.line)
    return FAILED if any(finding.state == "bad" for finding in findings) else OK


_Command = Callable[[argparse.Namespace], int]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-ray",
        description="Find out how much training can be skipped, measured against controls that cost the same.",
    )
    parser.add_argument("--verbose", action="store_true", help="also print informational log messages")
    parser.add_argument("--version", action="version", version=f"hybrid-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_job_commands(commands)
    _add_study_commands(commands)
    _add_other_commands(commands)
    return parser


def _add_job_commands(commands: Any) -> None:
    """Commands that read a job file."""

    def add(name: str, does: _Command, text: str) -> argparse.ArgumentParser:
        command = _add(commands, name, does, text)
        command.add_argument("job", metavar="JOB.yaml")
        _add_set(command, "change one setting of the job, e.g. train.steps=800")
        return command

    add("run", _run, "run a whole study: baseline, frontier, search, confirmation, report")
    plan = add("plan", _plan, "estimate the time and memory that a job needs; trains nothing")
    plan.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="only check whether a run fits on a device with this much free memory",
    )
    train = add("train", _train, "train once, without a search")
    train.add_argument("--arm", choices=["baseline", "hybrid"], default="hybrid", help="default: %(default)s")
    train.add_argument("--out", default="runs/train", metavar="DIR", help="directory of the run (default: %(default)s)")
    compare = add("compare", _compare, "compare the hybrid with its controls over several seeds, with statistics")
    compare.add_argument("--out", metavar="DIR", help="directory of the comparison (default: comparisons/NAME)")
    add("ladder", _ladder, "run one study per model size, each starting from the best settings of the smaller model")
    submit = add("submit", _submit, "send a job to a Ray cluster and follow its log")
    submit.add_argument(
        "--address", required=True, metavar="URL", help="URL of the cluster's dashboard, e.g. http://127.0.0.1:8265"
    )
    submit.add_argument(
        "--insecure",
        action="store_true",
        help="allow plain http to another machine, though others could read the job and the token",
    )


def _add_study_commands(commands: Any) -> None:
    """Commands that read a study's directory."""

    def add(name: str, does: _Command, text: str) -> argparse.ArgumentParser:
        command = _add(commands, name, does, text)
        command.add_argument("study", metavar="DIR", help="a study directory, such as studies/local")
        return command

    resume = add("resume", _resume, "continue a study or ladder that was stopped; finished trials are kept")
    resume.add_argument(
        "--fork", action="store_true", help="start a new study that first tries the best settings of this one"
    )
    extend = add("extend", _extend, "add trials to a finished study")
    extend.add_argument(
        "--trials", type=int, required=True, metavar="N", help="total number of trials, finished ones included"
    )
    add("report", _report, "write report.html and report.md again from the stored results")
    rescore = add("rescore", _rescore, "score a study's trials by another objective; trains nothing")
    _add_set(rescore, "change a setting of the objective, e.g. objective.mode=net")


def _add_other_commands(commands: Any) -> None:
    schema = _add(commands, "schema", _schema, "print the JSON schema of a job file, for editors")
    schema.add_argument(
        "--markdown", action="store_true", help="print all settings as Markdown tables instead (docs/settings.md)"
    )
    init = _add(commands, "init", _init, "write a commented job file that is ready to run")
    init.add_argument("path", metavar="PATH", nargs="?", default="my_job.yaml", help="default: %(default)s")
    init.add_argument(
        "--task", action="store_true", help="also write a Python file with a model of your own, which the job trains"
    )
    _add(commands, "doctor", _doctor, "show what this machine has and what is missing")


def _add(commands: Any, name: str, does: _Command, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=does)
    return command


def _add_set(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


if __name__ == "__main__":
    sys.exit(main())
