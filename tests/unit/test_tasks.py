"""A task of one's own: found by name, checked before anything starts, and trained as ours are."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_runs import Listener
from rank_pool import RankPool

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict, read_job
from hybrid_ray.errors import ConfigError
from hybrid_ray.memory.estimate import memory_need
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.results_version import run_settings
from hybrid_ray.tasks import Task, load_task
from hybrid_ray.training.loop import train

EXAMPLES = Path(__file__).parents[2] / "examples"
SERIES = TaskConfig(factory="own_model:SeriesTask", options={"width": 8, "length": 16})


pytestmark = pytest.mark.usefixtures("path_as_it_was")


def train_own(run: RunConfig, directory: Path, stop_at: int | None) -> RunResult:
    """On one rank. It stops at its evaluation of that number."""
    reporter = None if stop_at is None else Listener({stop_at: "stopped"})
    return train(run, reporter=reporter, directory=directory)


def series_run(**train: Any) -> RunConfig:
    settings = {"steps": 24, "batch_size": 8, "evaluations": 4, "calibration_steps": 5, "device": "cpu", **train}
    hybrid = HybridConfig(
        warmup_steps=4,
        full_steps=3,
        correct_steps=1,
        predictor={"name": "ema_nesterov", "time_constant": 10.0},
        prediction_horizon=2,
    )
    return RunConfig(task=SERIES, folders=(str(EXAMPLES),), train=TrainConfig(**settings), hybrid=hybrid)


def problems(tmp_path: Path, source: str, *, options: dict[str, Any] | None = None, **job: Any) -> list[str]:
    """What is said of a task file beside a job."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("from hybrid_ray import Task\n" + source)
    (tmp_path / "job.yaml").write_text(dump_job(job_from_dict(job)))
    asked = [f"task.factory={name}:Mine", f"task.options={options or {}}"]
    with pytest.raises(ConfigError) as caught:
        _ = load_task(read_job(tmp_path / "job.yaml", asked).run()).parts
    return list(caught.value.problems)


BODY = """
class Mine(Task):
    def __init__(self, *, width=1): pass
    def build_model(self): pass
    def loss(self, model, batch): pass
    def datasets(self): return PARTS
"""


@pytest.mark.parametrize(
    "source, options, part",
    [
        ("", {}, "has no Mine"),
        ("class Mine: pass", {}, "not a subclass of hybrid_ray.Task"),
        ("class Mine(Task): pass", {}, "has no build_model, no datasets, no loss"),
        ("1 / 0", {}, "importing mine_"),
        (BODY, {"widht": 3}, "task.options.widht is not an option of .* did you mean 'width'"),
        (BODY, {}, "NameError: name 'PARTS' is not defined"),
        (BODY.replace("PARTS", "{'train': [1], 'val': []}"), {}, r"has no 'test'"),
        (BODY.replace("PARTS", "{'train': iter([1]), 'val': [1], 'test': [1]}"), {}, "is not map-style"),
        (BODY.replace("width=1", "width"), {}, "task.options has no width"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_task_is_one_sentence(
    tmp_path: Path, source: str, options: dict[str, Any], part: str
) -> None:
    found = problems(tmp_path, source, options=options)
    assert any(re.search(part, problem) for problem in found), found


def test_settings_that_the_task_does_not_read_are_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, BODY, model={"dropout": 0.1}, train={"sequence_length": 32})
    assert any("model.dropout is 0.1 but the task" in problem for problem in found)
    assert any("train.sequence_length is 32 but the task" in problem for problem in found)


def test_options_without_a_factory_and_a_malformed_factory_are_problems() -> None:
    for task, part in [({"options": {"a": 1}}, "no task.factory"), ({"factory": "nothing"}, "package.module:Name")]:
        with pytest.raises(ConfigError, match=part):
            job_from_dict({"task": task})


def test_a_task_is_part_of_what_defines_a_run_and_its_place_is_not(tmp_path: Path) -> None:
    run = series_run()
    wider = replace(run, task=replace(SERIES, options={"width": 16}))
    moved = replace(run, folders=(str(tmp_path),))
    assert run_settings(run, tmp_path) != run_settings(wider, tmp_path)
    assert run_settings(run, tmp_path) == run_settings(moved, tmp_path)
    assert "task" not in run_settings(RunConfig(), tmp_path)
    assert run != wider


@pytest.mark.parametrize("model, data", [("micro", "random"), ("cnn", "digits")])
def test_our_data_sets_are_what_our_runs_read(tmp_path: Path, model: str, data: str) -> None:
    config = DataConfig(corpus=data, cache_dir=str(tmp_path), heldout_tokens=2048)
    task = load_task(RunConfig(model=ModelConfig(preset=model), data=config))
    for mine, plain in ((task.sampler, Task.sampler), (task.stretches, None)):
        if plain is not None:
            batch, other = mine(batch_size=4, seed=3).next(), plain(task, batch_size=4, seed=3).next()
        else:
            first = next(iter(mine("val")))
            batch, other = first, task.collate([task.parts["val"][item] for item in range(len(first[0]))])
        assert all(torch.equal(one, two) for one, two in zip(batch, other, strict=True))


def test_an_item_that_draws_is_the_same_for_any_ranks_and_leaves_no_trace() -> None:
    class Noise(Task):
        def datasets(self) -> Any:
            class Items(torch.utils.data.Dataset[torch.Tensor]):
                def __len__(self) -> int:
                    return 5

                def __getitem__(self, item: int) -> torch.Tensor:
                    return torch.rand(1) + item

            return {part: Items() for part in ("train", "val", "test")}

    task, state = Noise(), torch.get_rng_state()
    whole = task.sampler(batch_size=4, seed=1)
    first, second = whole.next(), whole.next()
    halves = [task.sampler(batch_size=4, seed=1, rank=rank, world=2).next() for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), first)
    resumed = task.sampler(batch_size=4, seed=1)
    resumed.load_state_dict({**whole.state_dict(), "position": 4})
    assert torch.equal(resumed.next(), second)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_is_repeated_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    run = series_run(checkpoint_every=5)
    whole = train(run, directory=tmp_path / "whole")
    stopped = train(run, reporter=Listener({2: "stopped"}), directory=tmp_path / "parted")
    assert (whole.status, stopped.status) == ("finished", "stopped")
    resumed = train(run, directory=tmp_path / "parted")
    assert resumed.heldout == whole.heldout
    assert set(whole.heldout["test"].metrics) == {"absolute error"}
    assert whole.tokens_read == 8 * 16 * whole.real_steps
    assert 0 < whole.heldout["test"].loss < 1


NORMED = """
import torch
from hybrid_ray import Task

class Normed(Task):
    def build_model(self):
        return torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def datasets(self):
        x = torch.linspace(-1, 1, 64)[:, None]
        return {part: torch.utils.data.TensorDataset(x, 2 * x) for part in ("train", "val", "test")}

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(model(x), y)
"""


def test_steps_timed_before_a_run_do_not_change_the_statistics_of_batch_norm(tmp_path: Path) -> None:
    (tmp_path / "normed_task.py").write_text(NORMED)
    settings = TrainConfig(steps=12, batch_size=4, evaluations=1, calibration_steps=5, device="cpu")
    task = TaskConfig(factory="normed_task:Normed")
    run = RunConfig(arm="baseline", task=task, folders=(str(tmp_path),), train=settings)
    more = replace(run, train=replace(settings, calibration_steps=9))
    assert train(run).heldout == train(more).heldout


def test_its_memory_is_traced() -> None:
    run = series_run()
    need = memory_need(run, load_task(run))
    parameters = 4 * 8 * (1 + 8 + 2) + 8 + 1
    assert need.weights == 4 * parameters
    assert need.activations > 0


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_and_resume_to_the_same_bits(ranks: RankPool, tmp_path: Path, parallel: str) -> None:
    run = replace(series_run(parallel=parallel, checkpoint_every=5), workers=2)
    alone = train(replace(run, workers=1))
    together = ranks.run(train_own, run, tmp_path / "whole", None)
    parted = ranks.run(train_own, run, tmp_path / "parted", 2)
    assert [result.status for result in parted] == ["stopped", "stopped"]
    assert ranks.run(train_own, run, tmp_path / "parted", None)[0].heldout == together[0].heldout
    assert together[0].heldout == together[1].heldout
    assert together[0].heldout["val"].loss == pytest.approx(alone.heldout["val"].loss, rel=0.02)


LOOKS = """
import torch
from torch import nn

class Mine(Task):
    def __init__(self, *, broken=False): self.broken = broken
    def build_model(self): return nn.Linear(3, 1)
    def datasets(self): return {part: [torch.ones(3)] * 40 for part in ("train", "val", "test")}
    def loss(self, model, batch):
        out = model(batch[:, : 2 if self.broken else 3])
        return out.square().mean() * float(out.detach().numpy().mean() > 0)
"""


@pytest.mark.parametrize(
    "method, said",
    [
        ("build_model(self): return lambda x: x", "build_model() returned function but must return a torch.nn.Module"),
        ("build_model(self): return nn.Linear(3, 1).requires_grad_(False)", "no parameter with requires_grad"),
        ("build_model(self, kept=[]): kept.append(nn.Linear(3, 1)); return kept[0]", "the same parameters twice"),
        ("loss(self, model, batch): return model(batch)", "must be a scalar: take its mean"),
        ("loss(self, model, batch): return 1.0", "the loss is a float but must be a scalar tensor"),
        ("loss(self, model, batch): return model(batch).mean().detach()", "the loss has no gradient"),
        ("datasets(self): return dict.fromkeys(('train', 'val', 'test'), Short())", "len(Mine.datasets()['train'])"),
        (
            "datasets(self): return dict.fromkeys(('train', 'val', 'test'), [1.0])",
            "same data set as 'train' and as 'val'",
        ),
        ("datasets(self): return {p: [None] for p in ('train', 'val', 'test')}", "reading a batch of Mine's data"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_before_anything_starts(tmp_path: Path, method: str, said: str) -> None:
    (tmp_path / "wrong.py").write_text(f"""from hybrid_ray import Task
{LOOKS.replace("class Mine", "class Right")}

class Short:
    def __len__(self): return -2
    def __getitem__(self, item): return torch.ones(3)

class Mine(Right):
    def {method}
""")
    run = replace(series_run(), task=TaskConfig(factory="wrong:Mine"), folders=(str(tmp_path),))
    with pytest.raises(ConfigError, match=re.escape(said)):
        memory_need(run, load_task(run))


def test_a_model_that_cannot_be_traced_is_counted_and_a_broken_one_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "looks.py").write_text("from hybrid_ray import Task\n" + LOOKS)
    task = TaskConfig(factory="looks:Mine")
    run = replace(series_run(), task=task, folders=(str(tmp_path),))
    assert memory_need(run, load_task(run)).allocated == 4 * (4 + 4 + 8 + 8)
    assert "looks:Mine can't be traced" in caplog.text
    run = replace(run, task=replace(task, options={"broken": True}))
    with pytest.raises(ConfigError, match=r"one training step of Mine fails: RuntimeError: .*looks\.py"):
        memory_need(run, load_task(run))
