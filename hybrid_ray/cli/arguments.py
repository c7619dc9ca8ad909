"""Arguments that several commands share."""

import argparse
from collections.abc import Callable
from typing import Any

__all__ = ["Run", "add_arm", "add_command", "add_fork", "add_set", "add_trials"]

Run = Callable[[argparse.Namespace], int]
"""What a command does; it returns the exit code."""


def add_command(subparsers: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    """A command whose ``--help`` begins with the text."""
    command: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    command.set_defaults(command=run)
    return command


def add_set(
    command: argparse.ArgumentParser, text: str = "change one setting of the job, e.g. train.steps=800"
) -> None:
    """``--set KEY=VALUE``, which may be repeated."""
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_arm(command: argparse.ArgumentParser) -> None:
    """``--arm`` of ``train``."""
    command.add_argument("--arm", choices=["baseline", "hybrid"], default="hybrid", help="default: %(default)s")


def add_fork(command: argparse.ArgumentParser) -> None:
    """``--fork`` of ``resume``."""
    command.add_argument(
        "--fork", action="store_true", help="start a new study that first tries the best settings of this one"
    )


def add_trials(command: argparse.ArgumentParser) -> None:
    """``--trials`` of ``extend``."""
    command.add_argument(
        "--trials", type=int, required=True, metavar="N", help="total number of trials, finished ones included"
    )
