"""Commands for a Ray cluster: ``submit``, ``logs``, ``stop``, ``fetch``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ray.cli import arguments
from hybrid_ray.cli.exit_codes import OK

if TYPE_CHECKING:
    from hybrid_ray.ray_tune.submission.dashboard import Dashboard

__all__ = ["add_cluster_commands", "with_command"]

_JOB_COMMANDS = {
    "run": "run a whole study, or a ladder if the job has rungs; the default",
    "ladder": "run one study per model size",
    "compare": "compare the hybrid with its controls over several seeds",
    "train": "train once, without a search",
}
_STUDY_COMMANDS = {
    "resume": "continue a study or ladder that was stopped",
    "extend": "add trials to a finished study",
    "report": "write the report again from the stored results",
    "rescore": "score a study's trials by another objective",
}


def with_command(words: Sequence[str]) -> list[str]:
    """The command line with ``run`` put in where ``submit`` names no command, as in ``submit JOB.yaml``."""
    first = next((place for place, word in enumerate(words) if not word.startswith("-")), None)
    if first is None or words[first] != "submit" or len(words) == first + 1:
        return [*words]
    named = words[first + 1] in {*_JOB_COMMANDS, *_STUDY_COMMANDS, "-h", "--help"}
    return [*words] if named else [*words[: first + 1], "run", *words[first + 1 :]]


def add_cluster_commands(subparsers: Any) -> None:
    """Add the commands for a cluster."""
    _add_submit(subparsers)

    def add(name: str, run: arguments.Run, text: str) -> argparse.ArgumentParser:
        command = arguments.add_command(subparsers, name, run, text)
        _add_address(command)
        return command

    for name, run, text in (
        ("logs", _logs, "print the log of a submitted command until it ends"),
        ("stop", _stop, "stop a submitted command, with time to end its runs; its study can be resumed"),
    ):
        add(name, run, text).add_argument("name", metavar="NAME", help="the name that submit printed")
    fetch = add("fetch", _fetch, "copy a study from the cluster to this machine")
    fetch.add_argument("study", metavar="STUDY", help="its path on the cluster, such as /shared/studies/local")
    fetch.add_argument("to", metavar="TO", nargs="?", help="new directory here (default: studies/<name of the study>)")


def _add_submit(subparsers: Any) -> None:
    text = "run a command on a Ray cluster and follow its log"
    submit = subparsers.add_parser("submit", help=text, description=f"{text}; submit JOB.yaml is submit run JOB.yaml")
    on_cluster = submit.add_subparsers(required=True, metavar="[COMMAND]", dest="name")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = arguments.add_command(on_cluster, name, _submit, text)
        _add_address(command)
        command.add_argument("--detach", action="store_true", help="print the name of the submitted command and return")
        command.add_argument(
            "--module",
            action="append",
            default=[],
            metavar="PATH",
            help="send this Python file or package of yours too; what a job file names is sent anyway",
        )
        return command

    for name, text in _JOB_COMMANDS.items():
        command = add(name, text)
        command.add_argument("target", metavar="JOB.yaml")
        arguments.add_set(command)
        if name == "train":
            arguments.add_arm(command)
        if name in ("train", "compare"):
            command.add_argument(
                "--out", required=True, metavar="DIR", help="directory on storage that every node shares"
            )
    for name, text in _STUDY_COMMANDS.items():
        command = add(name, text)
        command.add_argument("target", metavar="STUDY", help="its path on the cluster, such as /shared/studies/local")
        if name == "resume":
            arguments.add_fork(command)
        if name == "extend":
            arguments.add_trials(command)
        if name == "rescore":
            arguments.add_set(command, "change a setting of the objective, e.g. objective.mode=net")


def _add_address(command: argparse.ArgumentParser) -> None:
    known = os.environ.get("RAY_API_SERVER_ADDRESS")
    command.add_argument(
        "--address",
        required=known is None,
        default=known,
        metavar="URL",
        help="URL of the cluster's dashboard, e.g. http://127.0.0.1:8265 (default: $RAY_API_SERVER_ADDRESS)",
    )
    command.add_argument(
        "--insecure",
        action="store_true",
        help="allow plain http to another machine, though others could read the job and the token",
    )


def _dashboard(options: argparse.Namespace) -> "Dashboard":
    from hybrid_ray.ray_tune.submission.dashboard import Dashboard

    return Dashboard(address=options.address, token=os.environ.get("RAY_AUTH_TOKEN"), insecure=options.insecure)


def _submit(options: argparse.Namespace) -> int:
    from hybrid_ray.ray_tune.submission.submit import Command, submit

    command = Command(
        name=options.name,
        target=options.target,
        of_study=options.name in _STUDY_COMMANDS,
        overrides=vars(options).get("set", ()),
        out=vars(options).get("out"),
        options=_own_options(options),
        modules=[Path(path) for path in options.module],
    )
    return submit(command, dashboard=_dashboard(options), detach=options.detach)


def _own_options(options: argparse.Namespace) -> list[str]:
    """The arguments that only this command has."""
    if options.name == "train":
        return ["--arm", options.arm]
    if options.name == "resume":
        return ["--fork"] if options.fork else []
    if options.name == "extend":
        return ["--trials", str(options.trials)]
    return []


def _logs(options: argparse.Namespace) -> int:
    from hybrid_ray.ray_tune.submission.running import logs

    return logs(options.name, dashboard=_dashboard(options))


def _stop(options: argparse.Namespace) -> int:
    from hybrid_ray.ray_tune.submission.running import stop

    stop(options.name, dashboard=_dashboard(options))
    return OK


def _fetch(options: argparse.Namespace) -> int:
    from hybrid_ray.ray_tune.submission.fetch import fetch

    print(fetch(options.study, Path(options.to) if options.to else None, dashboard=_dashboard(options)))
    return OK
