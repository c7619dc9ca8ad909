"""The benchmarks' own code: fair sides, what they count, and the one command for a GPU, rehearsed without one."""

import importlib
import json
import random
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest
import torch

from hybrid_ray.config import ModelConfig
from hybrid_ray.models import GPT2, PRESETS, count_parameters

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/gpu_guide.md"
ROW = re.compile(
    r"^\| (?P<model>[\w.]+) \| (?P<micro>\d+) x \d+ \| (?P<settings>.*?) \| (?P<peak>[\d.]+) \*estimated\* "
    r"\| (?P<allocated>[\d.]+) \*estimated\* \|"
)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark as a module: they import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def found(name: str) -> ModuleType:
        return importlib.import_module(name)

    return found


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_says_how_it_is_used(
    script: Path, load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "__main__" not in script.read_text():
        load(script.stem)  # shared by others
        return
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.name}")


def test_the_plain_model_is_the_same_function_as_ours(load: Any) -> None:
    throughput = load("throughput")
    shape = PRESETS["micro"]
    ours, plain = GPT2(shape, 257, ModelConfig()), throughput.PlainGPT(shape, 257)
    names = {"wte": "tokens", "wpe": "positions", "h": "blocks", "ln_1": "norm1", "ln_2": "norm2", "ln_f": "norm"}
    names |= {"attn.c_attn": "qkv", "attn.c_proj": "out", "mlp.c_fc": "up", "mlp.c_proj": "down"}
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    state = {pattern.sub(lambda found: names[found[0]], key): value for key, value in ours.state_dict().items()}
    plain.load_state_dict({**state, "head.weight": state["tokens.weight"]})
    x, y = (torch.randint(257, (3, 32)) for _ in range(2))
    assert count_parameters(plain) == count_parameters(ours)
    torch.testing.assert_close(plain(x, y), ours(x, y))


def test_the_plain_loop_learns_and_runs_in_turn_with_ours(load: Any) -> None:
    throughput = load("throughput")
    found = throughput.measure("micro", against="whole", pairs=2, gpu=False, compile=False)
    assert len(found.ratios) == 2
    assert 0.2 < median(found.ratios) < 5  # both sides did the same amount of work, whatever the machine does
    assert 0 < found.ours_mfu < 1
    run = throughput.plain_run("micro", gpu=False, compile=False, steps=100)
    run = replace(run, train=replace(run.train, learning_rate=1e-2))
    tokens = torch.zeros(10_000, dtype=torch.int64).numpy()  # nothing is easier to learn
    torch.manual_seed(0)
    loop = throughput.PlainLoop(throughput.PlainGPT(PRESETS["micro"], 257), run, tokens, torch.device("cpu"))
    before = loop.forward(*loop.batch).item()
    loop.block(30)
    assert loop.forward(*loop.batch).item() < before / 2


def test_counted_peaks_are_what_the_plan_says(load: Any) -> None:
    memory = load("memory")
    cases = {case.name: case for case in memory.CASES}
    found = memory.measure(cases["hybrid"], "micro", steps=20, gpu=False)
    assert found.peak == pytest.approx(found.estimate, rel=0.1)
    assert found.predict < 0.3 * found.peak  # no activations, no gradients


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_command_says_so_in_a_line(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("gpu").main([]) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "no" in said
    assert "--cpu" in said


def test_the_gpu_command_rehearses_on_a_cpu(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = load("gpu").main(["--cpu", "--folder", str(tmp_path), "--sections", "steps", "350M"])
    said = capsys.readouterr().out
    assert ended == 0, said
    assert "finished after 20 steps" in (tmp_path / "350M.log").read_text()
    (found,) = json.loads((tmp_path / "steps.json").read_text())
    assert median(found["hybrid"]["predict"]) < 0.5 * median(found["baseline"])
    assert len(found["baseline"]) == sum(map(len, found["hybrid"].values())) == 60
    assert [line.split()[:1] for line in said.splitlines()[-3:-1]] == [["steps"], ["350M"]]


def test_a_section_whose_time_is_over_is_stopped_and_told(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("gpu").main(["--cpu", "--folder", str(tmp_path), "--sections", "steps", "--minutes", "0"]) == 1
    assert "when its time was over" in capsys.readouterr().out


def test_every_row_of_the_guide_is_a_job_that_can_be_asked_for(load: Any) -> None:
    guide = load("guide")
    rows = [found for line in GUIDE.read_text().splitlines() if (found := ROW.match(line))]
    assert len(rows) == len(guide.CARDS) * len(guide.MODELS)
    for row in rows:
        job = guide.job_of(overrides(row))
        assert job.model.preset == row["model"]


def test_the_guide_says_what_the_plan_says(load: Any) -> None:
    guide = load("guide")
    row = next(found for line in GUIDE.read_text().splitlines() if (found := ROW.match(line)))
    need = guide.need(overrides(row))
    said = f"{need.total / 2**30:.1f}", f"{need.allocated / 2**30:.1f}"
    assert said == (row["peak"], row["allocated"]), "python benchmarks/guide.py --write"


def overrides(row: "re.Match[str]") -> tuple[str, ...]:
    settings = re.findall(r"`([^`]+)`", row["settings"])
    return (f"model.preset={row['model']}", f"train.micro_batch_size={row['micro']}", *settings)


def test_confidence_is_scored_by_what_jumps_really_did(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Jumps harm where the first feature is high. Told so exactly, the model ranks them; told only noise, it can't."""
    draw, rows = random.Random(0), []
    for number in range(120):
        features = [draw.gauss(0.0, 1.0) for _ in range(64)]
        effect = 0.01 * features[0]
        row = {"seed": 0, "jump": float(number % 3 > 0), "features": features, "outcome": draw.gauss(0.0, 0.05)}
        rows.append({**row, "effect": effect, "error": 0.001, "look": effect, "later": effect} if row["jump"] else row)
    load("confidence").score(rows, 0.001)
    lines = capsys.readouterr().out.splitlines()
    areas = {line[:22].strip(): float(line[22:].split()[1]) for line in lines[4:]}
    assert areas["exact outcomes"] > 0.7
    assert abs(areas["linear"] - 0.5) < 0.2


def test_a_rule_that_is_left_out_raises_nothing_and_the_others_still_do(load: Any) -> None:
    """A gradient that doubles in every step, after 100 quiet ones: the rules that are left have to see it."""
    monitor = load("monitor")
    draw = random.Random(0)
    norms = [draw.uniform(0.9, 1.1) for _ in range(100)] + [4.0 * 2.0**k for k in range(7)]

    def advice(*off: str) -> list[str]:
        watched = monitor.Watched(off)
        found = [watched.observe_real(2.0 + draw.gauss(0.0, 0.1), norm, after_prediction=False) for norm in norms]
        assert watched.first["gradient: caution"] >= 100
        return [str(assessment.recovery) for assessment in found if assessment.recovery != "continue"]

    everything = advice()
    assert everything == ["force_full"]  # 5 of the last 6
    assert advice("gradient: 5 of the last 6") == ["skip_batch"]  # 100 times the mean
    assert advice("gradient: 5 of the last 6", "gradient: warning") == []
    assert advice("force_full") == advice("all recoveries") == []
