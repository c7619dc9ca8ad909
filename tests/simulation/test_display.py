"""The terminal's line per trial: the search objective comes first, and a score always has a net speedup with it."""

import io
from typing import Any

import pytest
from micro_jobs import micro_job
from rich.console import Console

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.study.display import Display, LiveDisplay
from hybrid_ray.study.plan import plan


def row(number: int, state: str = "COMPLETE", **changes: Any) -> dict[str, Any]:
    values = {"speedup": 1.25, "degradation": 0.03, "loss": 2.5, "score": 1.05, "net_speedup": 0.93, "objective": 1.05}
    return {"number": number, "state": state, "diverged": 0, "inert": 0, "error": None, **values, **changes}


@pytest.mark.parametrize(
    "mode, said",
    [
        ("score", "score 1.050, speedup 1.25, loss 2.5000 (+3.0%), net speedup 0.93"),
        ("net", "net speedup 0.93, score 1.050, speedup 1.25, loss 2.5000 (+3.0%)"),
        ("pareto", "speedup 1.25, loss 2.5000 (+3.0%), net speedup 0.93, score 1.050"),
    ],
)
def test_a_line_leads_with_what_is_searched(tmp_path: Any, mode: Any, said: str) -> None:
    job, out = micro_job(tmp_path, objective=ObjectiveConfig(mode=mode)), io.StringIO()
    display = Display(job, plan(job), out)
    display.ended(row(0))
    assert out.getvalue() == f"  trial 0: complete, {said}\n"


def test_a_diverged_trial_is_called_so_and_not_pruned(tmp_path: Any) -> None:
    job, out = micro_job(tmp_path), io.StringIO()
    Display(job, plan(job), out).ended(row(0, "PRUNED", diverged=1))
    assert out.getvalue().startswith("  trial 0: diverged, score")


def test_a_trial_that_equals_another_is_one_line_and_is_not_counted(tmp_path: Any) -> None:
    job, out = micro_job(tmp_path), io.StringIO()
    display = LiveDisplay(job, plan(job), io.StringIO())
    for shown in (display, Display(job, plan(job), out)):
        shown.ended(row(0))
        shown.ended(row(1, equal_to=0, preset="aggressive"))
    assert out.getvalue().splitlines()[1] == "  trial 1 (aggressive): equal to trial 0, not trained"
    console = Console(file=io.StringIO(), width=120)
    console.print(display._draw())
    assert "1 complete" in console.file.getvalue()  # type: ignore[attr-defined]


def test_on_its_way_a_trial_is_heading_for_a_net_speedup_where_that_is_searched(tmp_path: Any) -> None:
    job, out = micro_job(tmp_path, objective=ObjectiveConfig(mode="net")), io.StringIO()
    Display(job, plan(job), out).ended(row(0, "PRUNED", net_speedup=None, objective=0.97))
    assert "pruned, projected net speedup 0.97, score" in out.getvalue()


def test_the_front_so_far_is_shown(tmp_path: Any) -> None:
    job = micro_job(tmp_path, objective=ObjectiveConfig(mode="pareto"))
    display = LiveDisplay(job, plan(job), io.StringIO())
    for done in (
        row(0),
        row(1, speedup=1.2, score=1.0, objective=1.0),
        row(2, degradation=0.01, speedup=1.1, score=1.1, objective=1.1),
        row(3, "FAIL", score=None, error="oom"),
    ):
        display.ended(done)
    console = Console(file=io.StringIO(), width=120)
    console.print(display._draw())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "best so far: trial 2: speedup 1.10" in text
    assert "on the front of speedup and degradation: trials 0, 2" in text
