"""The rungs of a ladder: each is the job with some settings changed, and with step counts as shares of its run."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.jobfile.values import changed_job, plain_values
from hybrid_ray.config.ladder import LadderConfig
from hybrid_ray.errors import ConfigError

__all__ = ["check_rungs", "keep_share", "rung_jobs"]

_SAME_ON_ALL = ("name", "folders", "studies_dir", "published", "objective", "ladder", "search.ranges", "search.first")
_OTHER_FOLDERS = ("plots", "tuning")  # of the ladder's directory
_STEPS = ("prediction_horizon", "correction_interval", "warmup_steps", "full_steps", "correct_steps")
_MEMORY = ("beta3", "time_constant")
_LONGEST_MEMORY = 0.999999  # the largest beta3


def rung_jobs(job: JobConfig) -> dict[str, JobConfig]:
    """The job of each rung by name, smallest first, before anything is carried up.

    Raises:
        ConfigError: lists every problem of every rung.
    """
    jobs, problems = check_rungs(job)
    if problems:
        raise ConfigError(problems)
    return jobs


def check_rungs(job: JobConfig) -> tuple[dict[str, JobConfig], list[str]]:
    """The rungs, and the problems that the job itself does not have."""
    jobs: dict[str, JobConfig] = {}
    problems, trials = [], job.search.trials
    for name, settings in job.ladder.rungs.items():
        found = [] if name not in _OTHER_FOLDERS else [f"the ladder has a folder {name!r} of its own: rename the rung"]
        values = plain_values(replace(job, ladder=LadderConfig(), name="rung"))
        values |= {"name": name, "studies_dir": f"{job.studies_dir}/{job.name}"}
        if jobs:
            trials = max(2, round(job.ladder.trials_factor * trials))
        values["search"]["trials"] = trials
        _keep_shares(values, job, settings.get("train.steps", job.train.steps))
        jobs[name], wrong = changed_job(job, values, settings, _path_problem)
        trials = jobs[name].search.trials
        problems += [f"ladder.rungs.{name}: {problem}" for problem in [*found, *wrong]]
    return jobs, [*problems, *_ladder_problems(job)]


def _path_problem(path: str, value: Any) -> str | None:
    """Why a rung can't change this setting; None if it can."""
    if any(path == place or path.startswith(f"{place}.") for place in _SAME_ON_ALL):
        return f"{path} is the same on all rungs, or set by the ladder: leave it out"
    return None


def keep_share(name: str, value: Any, *, factor: float, shares: Collection[str]) -> Any:
    """A setting of the method on a run of ``factor`` times the steps, where it keeps its share of the run if it is one
    of ``shares`` (`LadderConfig.shares_of_run`).

    A memory of 1 / (1 - beta3) steps becomes ``factor`` times as long, and so does a count of steps. A count above 0
    stays at least 1; 0 (never) stays 0.
    """
    last = name.rpartition(".")[2]
    if value is None or ("memory" if last in _MEMORY else last) not in shares:
        return value
    if last == "beta3":
        return value if factor == 1 else min(_LONGEST_MEMORY, max(0.0, 1 - (1 - value) / factor))
    if last == "time_constant":
        return value * factor
    return max(1 if value else 0, round(value * factor))


def _keep_shares(values: dict[str, Any], job: JobConfig, steps: Any) -> None:
    """Change the job's own step counts in ``values`` to those of a rung of ``steps``."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        return  # reported with the other wrong values
    hybrid, factor = values["hybrid"], steps / job.train.steps
    for section, names in ((hybrid, _STEPS), (hybrid["predictor"], _MEMORY), (values["train"], ("beta3",))):
        for name in names:
            if name in section:
                section[name] = keep_share(name, section[name], factor=factor, shares=job.ladder.shares_of_run)


def _ladder_problems(job: JobConfig) -> Iterator[str]:
    ladder = job.ladder
    above = list(ladder.rungs)[1:]
    for name in ladder.from_nothing:
        if name not in above:
            yield (
                f"ladder.from_nothing names {name!r} but must name rungs above the first (which always is searched "
                f"from nothing): {', '.join(above) or 'there are none'}"
            )
    if ladder.learning_rate == "width_rule":
        yield from (
            f"ladder.rungs.{name}: train.learning_rate is set but ladder.learning_rate is 'width_rule', which sets it: "
            "leave one of them out"
            for name, settings in ladder.rungs.items()
            if "train.learning_rate" in settings
        )
