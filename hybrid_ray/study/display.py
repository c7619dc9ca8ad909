"""Progress of a study: a live panel on a terminal, otherwise one line per stage and per trial."""

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybrid_ray.config import JobConfig
from hybrid_ray.objective import pareto_front, ranked
from hybrid_ray.run_result import PHASES, RunResult, was_trained
from hybrid_ray.study.plan import Plan

__all__ = ["Display", "show"]


class Display:
    """Progress of one study, as lines. Estimates the time left from the finished steps and the plan."""

    def __init__(self, job: JobConfig, plan: Plan, out: TextIO) -> None:
        self._job, self._plan, self._out = job, plan, out
        self._started = time.monotonic()
        self._stage, self._stage_runs, self._runs_done = "", 0, 0
        self._steps_before = 0  # planned steps of the stages that are over
        self._states: Counter[str] = Counter()
        self._running: dict[int, Mapping[str, Any]] = {}
        self._phases: Counter[str] = Counter()
        self._mode = job.objective.mode
        self._best: Mapping[str, Any] | None = None
        self._finished: list[Mapping[str, Any]] = []

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, name: str, runs: int) -> None:
        """A stage with this many runs begins."""
        over = next((stage.steps for stage in self._plan.stages if stage.name == self._stage), 0)
        self._steps_before += over
        self._stage, self._stage_runs, self._runs_done = name, runs, 0
        self._changed(f"{name}: {runs} runs" if runs else name)

    def run_done(self, result: RunResult) -> None:
        """A run outside the search has ended."""
        self._runs_done += 1
        loss = result.heldout["val"].loss if "val" in result.heldout else math.nan
        said = f"loss {loss:.4f}" if result.status == "finished" else f"{result.status}: {result.error}"
        self._changed(f"  {result.arm} (seed {result.seed}, {result.steps} steps): {said}")

    def started(self, number: int, params: Mapping[str, Any], preset: str | None) -> None:
        """A trial has started."""
        self._running[number] = {}
        self._changed(None)

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial has reported an evaluation."""
        self._running[number] = result
        self._changed(None)

    def ended(self, row: Mapping[str, Any]) -> None:
        """A trial has ended."""
        if not was_trained(row):
            self._changed(f"  trial {row['number']}{_named(row)}: equal to trial {row['equal_to']}, not trained")
            return
        last = self._running.pop(row["number"], {})
        self._phases.update({name: int(last.get(f"phase_{name}", 0)) for name in PHASES})
        self._states[row["state"]] += 1
        self._runs_done += 1
        self._finished.append(row)
        self._best = next(iter(ranked(self._finished, self._mode)), None)
        end = "diverged" if row["diverged"] else row["state"].lower()
        self._changed(f"  trial {row['number']}{_named(row)}: {end}, {_worth(row, self._mode)}")

    def _changed(self, line: str | None) -> None:
        """Update the display; print ``line`` if there is one."""
        if line is not None:
            print(line, file=self._out, flush=True)

    @property
    def _left(self) -> float:
        """Seconds left, from the rate so far; from the plan until the first run has ended."""
        share = self._runs_done / self._stage_runs if self._stage_runs else 0.0
        steps = next((stage.steps for stage in self._plan.stages if stage.name == self._stage), 0)
        done = self._steps_before + share * steps
        elapsed = time.monotonic() - self._started
        if not done:
            return max(0.0, self._plan.total_seconds - elapsed)
        return elapsed / done * max(0.0, self._plan.steps - done)


class LiveDisplay(Display):
    """The same progress, as a panel that is redrawn in place on a terminal."""

    def __init__(self, job: JobConfig, plan: Plan, out: TextIO) -> None:
        super().__init__(job, plan, out)
        # The thread that changes the counts also draws them: another thread could read half-updated counts.
        self._live = Live(console=Console(file=out), auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _changed(self, line: str | None) -> None:
        self._live.update(self._draw(), refresh=True)

    def _draw(self) -> Group:
        elapsed = time.monotonic() - self._started
        head = Text(f"{self._job.name}  {self._stage}  {self._runs_done}/{self._stage_runs}", style="bold")
        times = Text(f"{_clock(elapsed)} so far, about {_clock(self._left)} left", style="dim")
        return Group(head, times, self._trials(), *self._best_line())

    def _trials(self) -> Table:
        table = Table.grid(padding=(0, 2))
        counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(self._states.items()))
        table.add_row("trials", f"{counts or 'none done'}, {len(self._running)} running")
        shares = self._shares()
        if shares:
            table.add_row("phases", shares)
        for number, result in sorted(self._running.items()):
            worth = f"step {result['step']}, {_worth(result, self._mode)}" if result else "starting"
            table.add_row(f"  {number}", worth)
        return table

    def _shares(self) -> str:
        total = self._phases + Counter(
            {name: sum(int(row.get(f"phase_{name}", 0)) for row in self._running.values()) for name in PHASES}
        )
        steps = sum(total.values())
        return ", ".join(f"{name} {total[name] / steps:.0%}" for name in PHASES) if steps else ""

    def _best_line(self) -> list[Text]:
        if self._best is None:
            return []
        worth = _worth(self._best, self._mode)
        lines = [Text(f"best so far: trial {self._best['number']}{_named(self._best)}: {worth}")]
        if self._mode == "pareto":
            done = [row for row in self._finished if row["state"] == "COMPLETE" and not row["diverged"]]
            front = pareto_front([(row["speedup"], row["degradation"]) for row in done])
            numbers = (str(row["number"]) for row, on in zip(done, front, strict=True) if on)
            lines.append(Text(f"on the front of speedup and degradation: trials {', '.join(numbers)}"))
        return lines


def show(job: JobConfig, plan: Plan, out: TextIO = sys.stderr) -> Display:
    """A panel if the output is a terminal, else lines."""
    return (LiveDisplay if out.isatty() else Display)(job, plan, out)


def _named(row: Mapping[str, Any]) -> str:
    return f" ({row['preset']})" if row.get("preset") else ""


def _worth(row: Mapping[str, Any], mode: str) -> str:
    """Measures of a trial, the searched one first. A score rewards stopping early, so the net speedup follows it."""
    if row.get("score") is None:
        return str(row.get("error") or "no score")
    score, faster = f"score {row['score']:.3f}{_stopped_early(row)}", f"speedup {row['speedup']:.2f}"
    loss, net = f"loss {row['loss']:.4f} ({row['degradation']:+.1%})", _net(row, mode)
    order = {
        "score": (score, faster, loss, net),
        "net": (net, score, faster, loss),
        "pareto": (faster, loss, net, score),
    }
    return ", ".join(text for text in order[mode] if text)


def _stopped_early(row: Mapping[str, Any]) -> str:
    """The score of stopping early at the same time: a score says nothing about predicting without it."""
    excess = row.get("excess")
    return "" if excess is None else f" (stopping early {row['score'] - excess:.3f})"


def _net(row: Mapping[str, Any], mode: str) -> str:
    """Net speedup of a finished trial; for a running one a projection, if the net speedup is searched."""
    if row.get("state") == "COMPLETE":
        net, error = row.get("net_speedup"), row.get("net_error")
        around = f" ± {error:.2f}" if error else ""
        return f"net speedup {net:.2f}{around}" if net is not None else "no net speedup (loss off the frontier)"
    return f"projected net speedup {row['objective']:.2f}" if mode == "net" and row["objective"] > 0 else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
