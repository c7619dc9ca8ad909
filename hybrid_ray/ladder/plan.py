"""The cost and the memory of every rung, before anything starts."""

from collections.abc import Iterator
from dataclasses import dataclass

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import rung_jobs
from hybrid_ray.errors import ConfigError
from hybrid_ray.ladder.rungs import check_ladder
from hybrid_ray.memory.estimate import size_text
from hybrid_ray.memory.plan_text import MemoryPlan
from hybrid_ray.study.plan import Plan, Stage, duration, plan, plan_memory

__all__ = ["LadderPlan", "RungPlan", "plan_ladder", "plan_ladder_memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RungPlan:
    """The plan of a rung's study, its tuning runs, and the trials of a search from nothing, if it has one."""

    study: Plan
    tuning: Stage
    from_nothing: Stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self.tuning, *self.study.stages, self.from_nothing)

    @property
    def seconds(self) -> float:
        return sum(map(self.study.seconds, self.stages))

    @property
    def runs(self) -> int:
        return sum(stage.runs for stage in self.stages)

    @property
    def steps(self) -> int:
        """Real steps of all runs."""
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True, kw_only=True, slots=True)
class LadderPlan:
    """The plans of all rungs by name, smallest first."""

    rungs: dict[str, RungPlan]

    @property
    def total_seconds(self) -> float:
        return sum(rung.seconds for rung in self.rungs.values())

    @property
    def text(self) -> str:
        """As `hybrid-ray plan` prints it."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        wide = max(len("rung"), *map(len, self.rungs))
        yield (
            f"{'rung':<{wide}}{'parameters':>15}{'ms a step':>11}{'tuning':>8}{'frontier':>10}{'trials':>8}"
            f"{'confirm':>9}{'from 0':>8}{'real steps':>13}{'time':>10}{'memory of a run':>17}{'at a time':>11}"
        )
        for name, rung in self.rungs.items():
            counts = {stage.name: stage.runs for stage in rung.stages}
            need, room = rung.study.concurrency.need, rung.study.concurrency
            yield (
                f"{name:<{wide}}{need.parameters:>15,}{1000 * rung.study.step_seconds:>11.3g}"
                f"{counts['tuning']:>8}{counts['frontier']:>10}{counts['search']:>8}{counts['confirmation']:>9}"
                f"{counts['from nothing']:>8}{rung.steps:>13,}{duration(rung.seconds):>10}"
                f"{size_text(need.total):>17}{room.runs:>11}"
            )
        runs, steps = (sum(getattr(rung, name) for rung in self.rungs.values()) for name in ("runs", "steps"))
        yield f"total: {runs} runs, {steps:,} real steps, {duration(self.total_seconds)}"
        guessed = [name for name, rung in self.rungs.items() if not rung.study.measured]
        if guessed:
            how = self.rungs[guessed[0]].study.probe
            yield f"times of {', '.join(guessed)} are estimated from {how}" + (
                "; the others were measured" if len(guessed) < len(self.rungs) else ""
            )
        last = list(self.rungs.values())[-1].study
        yield f"every rung fits: {size_text(last.concurrency.there)} are free on {last.device}"


def plan_ladder(job: JobConfig) -> LadderPlan:
    """The plan of every rung. The learning rates and settings that are carried up do not change it.

    Raises:
        ConfigError: lists the problems of every rung, such as one that does not fit in memory.
    """
    check_ladder(job)
    jobs, problems, found = rung_jobs(job), [], {}
    for name, rung in jobs.items():
        try:
            found[name] = _rung_plan(job, rung, first=next(iter(jobs.values())))
        except ConfigError as error:
            problems += [f"rung {name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return LadderPlan(rungs=found)


def plan_ladder_memory(job: JobConfig, *, gibibytes: float) -> dict[str, MemoryPlan]:
    """By rung: whether one worker fits on a device with that much free memory."""
    check_ladder(job)
    return {name: plan_memory(rung, gibibytes=gibibytes) for name, rung in rung_jobs(job).items()}


def _rung_plan(job: JobConfig, rung: JobConfig, *, first: JobConfig) -> RungPlan:
    ladder, study = job.ladder, plan(rung)
    tuned = len(set(ladder.lr_factors)) if ladder.learning_rate == "retune" else 0
    trials = first.search.trials if rung.name in ladder.from_nothing else 0
    search = next(stage for stage in study.stages if stage.name == "search")
    return RungPlan(
        study=study,
        tuning=Stage(name="tuning", runs=tuned, steps=tuned * rung.train.steps),
        from_nothing=Stage(name="from nothing", runs=trials, steps=trials * search.steps // search.runs),
    )
