"""Run a ladder: rung by rung, each an ordinary study, then its report.

A ladder that was stopped or killed goes on where it was: finished rungs are kept, an unfinished one is resumed as any
study is, and what was carried to a rung is not chosen again.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import read_job, rung_jobs
from hybrid_ray.errors import HybridRayError
from hybrid_ray.ladder.directory import JOB, LadderDirectory, from_nothing_name
from hybrid_ray.ladder.page import write_ladder
from hybrid_ray.ladder.plan import plan_ladder
from hybrid_ray.ladder.rungs import learning_rate
from hybrid_ray.ladder.transfer import Carried, carry
from hybrid_ray.memory.estimate import memory_need
from hybrid_ray.ray_tune.cluster import ray_session
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.report.load import load_study
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.study.pipeline import Outcome, resume_study, run_study
from hybrid_ray.study.plan import resolve_auto
from hybrid_ray.study.stopping import StopFlag, Stopped
from hybrid_ray.tasks import load_task

__all__ = ["climb"]


def climb(job: JobConfig, *, say: Callable[[str], None] = print) -> Outcome:
    """Run all rungs of a job that are not done yet, from the smallest to the largest, and write the report.

    Args:
        say: receives the plan before anything starts, and a line before each study.

    Raises:
        ConfigError: a rung can't be run here, or the directory holds another ladder; nothing was started.
        HybridRayError: a rung had to end early; finished runs are kept.
    """
    say(plan_ladder(job).text)
    with LadderDirectory(job) as directory, StopFlag() as flag:
        try:
            failed = _Climb(job, directory, flag, say).run()
        except Stopped:
            return Outcome(status="stopped", text=_continue_with(directory), directory=directory.path)
        except HybridRayError as error:  # a ConfigError too: nothing else starts, but something was
            said = "; ".join(str(error).splitlines()).rstrip(".")
            raise HybridRayError(f"{said}. Finished runs are kept. {_continue_with(directory)}") from error
        if failed is not None:
            return replace(failed, text=f"{failed.text}\n\n{_continue_with(directory)}", directory=directory.path)
        text = write_ladder(directory.path)
    return Outcome(
        status="finished", text=f"{text}\n\nReport: {directory.path / 'report.html'}", directory=directory.path
    )


def _continue_with(directory: LadderDirectory) -> str:
    return f"Continue the ladder with: hybrid-ray resume {directory.path}"


class _Climb:
    """One session of work on a ladder."""

    def __init__(self, job: JobConfig, directory: LadderDirectory, flag: StopFlag, say: Callable[[str], None]) -> None:
        self._job, self._directory, self._flag, self._say = job, directory, flag, say
        self._rungs = rung_jobs(job)

    def run(self) -> Outcome | None:
        """Run every study that is not done. Returns the outcome of one that failed, which ends the session.

        Raises:
            Stopped: a signal came.
        """
        names = list(self._rungs)
        for place, name in enumerate(names):
            above = names[place + 1 : place + 2]
            if above and self._directory.has_study(above[0]):
                continue  # settings were carried on from here, so it stays as it is
            failed = self._study(name, name, partial(self._rung_job, name, names[place - 1] if place else None))
            write_ladder(self._directory.path)
            if failed is not None:
                return failed
        for name in self._job.ladder.from_nothing:
            failed = self._study(from_nothing_name(name), name, partial(self._from_nothing_job, name))
            if failed is not None:
                return failed
        return None

    def _study(self, name: str, rung: str, job_of: Callable[[], JobConfig]) -> Outcome | None:
        """Run or resume a study. Returns its outcome if it failed."""
        place = self._directory.path / name
        begun = self._directory.has_study(name)
        if begun and load_study(place).finished:
            return None
        self._say(f"{self._job.name}: {name} {'continues' if begun else 'begins'}")
        with ray_session(self._rungs[rung]):
            self._flag.listen()  # because Ray has installed its own signal handler
            job = None if begun else job_of()
            self._flag.raise_if_set()
            outcome = resume_study(place) if job is None else run_study(job, source=self._directory.path / JOB)
        if outcome.status == "stopped":
            raise Stopped(outcome.text)
        return outcome if outcome.status == "failed" else None

    def _rung_job(self, name: str, below: str | None) -> JobConfig:
        """The job of a rung, with its learning rate and with what the rung below found."""
        rung = resolve_auto(self._rungs[name])
        kept = self._directory.transfer.get(name)
        if kept is None:
            kept = self._transfer(rung, None if below is None else self._job_of(below))
            self._directory.keep_transfer(name, kept)
        carried = Carried.from_dict(kept["carried"])
        return replace(
            rung,
            train=replace(rung.train, learning_rate=kept["rate"]["learning_rate"]),
            search=replace(rung.search, first=carried.first, ranges=carried.ranges),
        )

    def _transfer(self, rung: JobConfig, below: JobConfig | None) -> dict[str, Any]:
        rate = learning_rate(self._job, rung, below=below, directory=self._directory.tuning(rung.name))
        carried = Carried(first={}, origins={}, ranges={})
        if below is not None:
            rows = read_jsonl(self._directory.path / below.name / "trials.jsonl")
            carried = carry(rows, below=below, above=rung, ladder=self._job.ladder, space=load_space(rung).ranges)
        need = memory_need(rung.run(), load_task(rung.run()))
        return {
            "below": None if below is None else below.name,
            "rate": rate,
            "carried": carried.as_dict(),
            "parameters": need.parameters,
            "memory": need.total,
        }

    def _from_nothing_job(self, name: str) -> JobConfig:
        """The job of a rung without what was carried up, with as many trials as the first rung."""
        job, trials = self._job_of(name), next(iter(self._rungs.values())).search.trials
        return replace(
            job,
            name=from_nothing_name(name),
            search=replace(job.search, first={}, ranges={}, trials=trials),
            confirm=replace(job.confirm, best=0),
        )

    def _job_of(self, name: str) -> JobConfig:
        """The job of a study as it ran."""
        return replace(read_job(self._directory.path / name / "job.yaml"), studies_dir=str(self._directory.path))
