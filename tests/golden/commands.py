"""Run commands of the package in a folder and record exit code and text, without the parts that vary.

Numbers that may depend on time or machine become ``#``; every folder of this machine becomes a fixed word.
Started as a script, this file runs the commands it reads from its input, one after another in one process: importing
torch takes longer than most of them.
"""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

__all__ = ["command_traces", "micro_job", "run_command", "run_commands", "workplace", "write_job"]

REPOSITORY = Path(__file__).parents[2]
COMMAND_LINE = "hybrid_ray.cli"  # run with python -m
COMMANDS = (
    *("run", "plan", "train", "compare", "ladder", "resume", "extend", "report", "rescore"),
    *("submit", "logs", "stop", "fetch", "init", "doctor"),
)
_NUMBER = re.compile(r"(?<![\w#])[+-]?\d+(?:[.,:]\d+)*(?:e[+-]?\d+)?|\d+(?:[.,]\d+)*")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)*[\w.+-]+")

# Wrong uses: name, command, and the changes to make in the job first.
_WRONG_JOBS: Mapping[str, tuple[str, ...]] = {
    "a wrong name and a wrong value": ("run", "--set", "train.stepz=9", "--set", "search.trials=0"),
    "many problems": (
        *("plan", "--set", "hybrid.predictor=crystal_ball", "--set", "train.optimizer=lion"),
        *("--set", "hybrid.full_steps=0", "--set", "frontier.lengths=[0.5]", "--set", "data.tokenizer=words"),
        *("--set", "compare.interim_analyses=[2]", "--set", "confirm.seeds=1", "--set", "model.preset=huge"),
    ),
    "values of the wrong type": ("train", "--set", "train.steps=many", "--set", "train.betas=3", "--set", "seed=x"),
    "an override that is none": ("run", "--set", "train.steps"),
    "more processors than there are": ("run", "--set", "resources.cpus_per_worker=4096"),
    "a batch that workers can't share": ("plan", "--set", "resources.workers=3"),
    "a corpus that is not there": ("train", "--set", "data.corpus=nowhere"),
    "an arm that train has not": ("train", "--arm", "placebo"),
}
_WRONG: Mapping[str, tuple[str, ...]] = {
    "no command": (),
    "an unknown command": ("tuna",),
    "no such job": ("run", "nothing.yaml"),
    "a job that is no YAML": ("run", "broken.yaml"),
    "resume of nothing": ("resume", "nothing"),
    "extend of nothing": ("extend", "nothing", "--trials", "4"),
    "extend without trials": ("extend", "nothing"),
    "report of nothing": ("report", "nothing"),
    "rescore of nothing": ("rescore", "nothing", "--set", "objective.mode=net"),
}


def micro_job(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A job whose runs take about a second; ``sections`` replace parts of it."""
    job: dict[str, Any] = {
        "name": "micro",
        "studies_dir": "studies",
        "model": {"preset": "micro"},
        "data": {"corpus": "text", "heldout_tokens": 2048, "cache_dir": "cache"},
        "train": {
            **{"steps": 60, "batch_size": 4, "sequence_length": 16, "learning_rate": 0.01},
            **{"evaluations": 4, "calibration_steps": 5},
        },
        "hybrid": {
            **{"confidence_threshold": 0.0, "correction_interval": 3},
            "predictor": {"name": "ema_nesterov", "time_constant": 10.0},
            **{"warmup_steps": 10, "full_steps": 3, "correct_steps": 1},
        },
        "search": {"trials": 2, "startup_trials": 2, "sampler": "random", "scheduler": "none"},
        "confirm": {"best": 4, "seeds": 3},
        "compare": {"interim_analyses": [3], "arms": ["placebo", "random_direction"], "tune_baseline": False},
        "resources": {"max_concurrent": 1},
    }
    for section, values in sections.items():
        job[section] = {**job.get(section, {}), **values}
    return job


def write_job(path: Path, job: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a small corpus, a job, and a file that is no job."""
    with TemporaryDirectory(prefix="guard-") as name:
        folder = Path(os.path.realpath(name))
        (folder / "text").mkdir()
        for number in range(120):
            lines = (f"{number} + {n} = {number + n}; {number} * {n} = {number * n}" for n in range(100))
            (folder / f"text/table{number}.txt").write_text("\n".join(lines), encoding="utf-8")
        write_job(folder / "job.yaml", micro_job())
        (folder / "broken.yaml").write_text("train: [1, 2\n", encoding="utf-8")
        yield folder


def run_command(folder: Path, *arguments: str, masked: bool = True) -> dict[str, Any]:
    """Exit code, output lines and error lines of one command, run in its own process."""
    done = _process(folder, ["-m", COMMAND_LINE, *arguments])
    return _answer(folder, done.returncode, done.stdout, done.stderr, masked=masked)


def run_commands(folder: Path, commands: Mapping[str, Sequence[str]], *, masked: bool = True) -> dict[str, Any]:
    """The same for several commands, by name, all run in one process."""
    done = _process(folder, [str(Path(__file__))], asked=json.dumps(list(commands.values())))
    if done.returncode:
        raise RuntimeError(f"the commands {list(commands)} could not be run:\n{done.stderr}")
    answers = json.loads(done.stdout)
    return {name: _answer(folder, *answer, masked=masked) for name, answer in zip(commands, answers, strict=True)}


def command_traces() -> dict[str, Any]:
    """Traces of help, wrong uses, and commands that train nothing."""
    told = {"help": ("--help",), **{f"help of {command}": (command, "--help") for command in COMMANDS}, **_WRONG}
    told |= {name: (first, "job.yaml", *rest) for name, (first, *rest) in _WRONG_JOBS.items()}
    looked = {"plan": ("plan", "job.yaml"), "plan for a memory": ("plan", "job.yaml", "--memory", "0.1")}
    with workplace() as folder:
        return {
            **run_commands(folder, told, masked=False),
            **run_commands(folder, looked),
            "doctor": run_command(folder, "doctor"),
        }


def _process(folder: Path, words: Sequence[str], *, asked: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=_environment(folder),
        input=asked,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def _answer(folder: Path, code: int, output: str, errors: str, *, masked: bool) -> dict[str, Any]:
    return {
        "exit code": code,
        "output": _lines(output, folder, masked),
        "errors": _lines(errors, folder, masked),
    }


def _serve() -> None:
    """Run the commands read from the input in this process; print their exit codes and texts."""
    main = import_module(COMMAND_LINE).main
    answers = []
    for arguments in json.load(sys.stdin):
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = ended.code
        answers.append([code, output.getvalue(), errors.getvalue()])
    print(json.dumps(answers))


def _environment(folder: Path) -> dict[str, str]:
    fixed = {
        "PYTHONPATH": str(REPOSITORY),
        "HYBRID_RAY_CACHE": str(folder / "cache"),
        "COLUMNS": "120",
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HYBRID_RAY"))}
    return kept | fixed


def _lines(text: str, folder: Path, masked: bool) -> list[str]:
    """The lines of a text without varying parts; if ``masked``, also without blank lines and column widths."""
    text = text.replace(str(folder), "FOLDER").replace(str(REPOSITORY), "REPOSITORY")
    text = _PATH.sub("PATH", text)
    if not masked:
        return text.splitlines()
    lines = (re.sub(r"\s+", " ", _NUMBER.sub("#", line)).strip() for line in text.splitlines())
    return [re.sub(r"# (s|min|h|ms|[KMG]iB)\b", "# UNIT", line) for line in lines if line]


if __name__ == "__main__":
    _serve()
