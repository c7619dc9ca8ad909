"""The arguments of every command."""

import argparse
from typing import Any

from hybrid_ray.cli import arguments, commands
from hybrid_ray.cli.cluster import add_cluster_commands
from hybrid_ray.version import __version__

__all__ = ["build_parser"]


def build_parser() -> argparse.ArgumentParser:
    """The parser; it sets ``command``, the function to call with what it parsed."""
    parser = argparse.ArgumentParser(
        prog="hybrid-ray",
        description="Find out how much training can be skipped, measured against controls that cost the same.",
    )
    parser.add_argument("--verbose", action="store_true", help="also print informational log messages")
    parser.add_argument("--version", action="version", version=f"hybrid-ray {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_job_commands(subparsers)
    _add_study_commands(subparsers)
    add_cluster_commands(subparsers)
    _add_other_commands(subparsers)
    return parser


def _add_job_commands(subparsers: Any) -> None:
    """Commands that read a job file."""

    def add(name: str, run: arguments.Run, text: str) -> argparse.ArgumentParser:
        command = arguments.add_command(subparsers, name, run, text)
        command.add_argument("job", metavar="JOB.yaml")
        arguments.add_set(command)
        return command

    add(
        "run",
        commands.run,
        "run a whole study (baseline, frontier, search, confirmation), or a ladder if the job has rungs; the report is "
        "in studies/NAME",
    )
    plan = add("plan", commands.plan, "estimate the time and memory that a job needs; trains nothing")
    plan.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="only check whether a run fits on a device with this much free memory",
    )
    train = add("train", commands.train, "train once, without a search")
    arguments.add_arm(train)
    train.add_argument("--out", default="runs/train", metavar="DIR", help="directory of the run (default: %(default)s)")
    compare = add(
        "compare", commands.compare, "compare the hybrid with its controls over several seeds, with statistics"
    )
    compare.add_argument("--out", metavar="DIR", help="directory of the comparison (default: comparisons/NAME)")
    add(
        "ladder",
        commands.ladder,
        "run one study per model size, each starting from the best settings of the smaller model",
    )


def _add_study_commands(subparsers: Any) -> None:
    """Commands that read a study's directory."""

    def add(name: str, run: arguments.Run, text: str, what: str = "a study") -> argparse.ArgumentParser:
        command = arguments.add_command(subparsers, name, run, text)
        command.add_argument("study", metavar="DIR", help=f"directory of {what}, such as studies/local")
        return command

    continued = "a study or ladder"
    resume = add(
        "resume", commands.resume, f"continue {continued} that was stopped; finished trials are kept", continued
    )
    arguments.add_fork(resume)
    extend = add("extend", commands.extend, "add trials to a finished study")
    arguments.add_trials(extend)
    stored = "a study, ladder or comparison"
    add("report", commands.report, "write report.html and report.md again from the stored results", stored)
    rescore = add("rescore", commands.rescore, "score a study's trials by another objective; trains nothing")
    arguments.add_set(rescore, "change a setting of the objective, e.g. objective.mode=net")


def _add_other_commands(subparsers: Any) -> None:
    schema = arguments.add_command(
        subparsers, "schema", commands.schema, "print the JSON schema of a job file, for editors"
    )
    schema.add_argument(
        "--markdown", action="store_true", help="print all settings as Markdown tables instead (docs/settings.md)"
    )
    init = arguments.add_command(subparsers, "init", commands.init, "write a commented job file that is ready to run")
    init.add_argument("path", metavar="PATH", nargs="?", default="my_job.yaml", help="default: %(default)s")
    init.add_argument(
        "--task", action="store_true", help="also write a Python file with a model of your own, which the job trains"
    )
    arguments.add_command(subparsers, "doctor", commands.doctor, "show what this machine has and what is missing")
