"""An optimizer that a job names as ``package.module:Name``."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro_runs import micro_run

from hybrid_ray import load_job
from hybrid_ray.config import HybridConfig, RunConfig, TrainConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.optim import build_optimizer
from hybrid_ray.tasks.load import load_task
from hybrid_ray.training.loop import train

OWN = """
import torch

class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0, *, momentum=0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(m.sign(), alpha=-group["lr"])

def no_rate(params, weight_decay): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_optimizer.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def run(optimizer: object, **changes: object) -> RunConfig:
    usual = micro_run()
    settings = replace(usual.train, optimizer=optimizer, **changes)  # type: ignore[arg-type]
    return replace(usual, arm="hybrid", train=settings, hybrid=HybridConfig(warmup_steps=5, full_steps=2))


def test_a_class_of_torch_is_made_with_the_jobs_rate_decay_and_options() -> None:
    model = torch.nn.Linear(3, 2)
    setting = {"name": "torch.optim:SGD", "momentum": 0.8, "nesterov": True}
    made = build_optimizer(model, TrainConfig(optimizer=setting, learning_rate=0.02, weight_decay=0.3))
    assert type(made) is torch.optim.SGD
    assert all((group["lr"], group["momentum"], group["nesterov"]) == (0.02, 0.8, True) for group in made.param_groups)
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize("setting", ["torch.optim:RAdam", {"name": "my_optimizer:SignDescent", "momentum": 0.8}])
def test_a_run_trains_and_predicts_with_it(own: None, setting: object) -> None:
    wanted = run(setting, learning_rate=1e-3)
    load_task(wanted)
    first, again = train(wanted), train(wanted)
    assert first.status == "finished", first.error
    assert first.predicted_steps
    assert first.heldout["val"].loss == again.heldout["val"].loss != train(run("adamw")).heldout["val"].loss


@pytest.mark.parametrize(
    ("setting", "changes", "said"),
    [
        ("adamww", {}, "must be one of adamw, adam"),
        ({"name": "adamw", "momentum": 0.9}, {}, "adamw takes no options: leave momentum out"),
        ("my_optimizer:SignDescend", {}, "my_optimizer has no SignDescend: did you mean 'SignDescent'?"),
        ({"name": "my_optimizer:SignDescent", "momentun": 1}, {}, "momentun is not an option of my_optimizer:SignDesc"),
        ({"name": "my_optimizer:SignDescent", "lr": 1}, {}, "train.optimizer.lr is train.learning_rate in a job"),
        ("my_optimizer:no_rate", {}, "takes no lr: train.learning_rate would have no effect"),
        ("my_optimizer:SignDescent", {"betas": (0.8, 0.9)}, "takes no betas: leave train.betas out"),
        ("torch.optim:Rprop", {}, "takes no weight_decay: set train.weight_decay to 0"),
    ],
)
def test_what_can_not_work_is_said_before_anything_starts(
    own: None, setting: object, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        load_task(run(setting, **changes))


def test_an_option_is_set_on_the_command_line_and_stays_with_the_job(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("train: {optimizer: 'torch.optim:SGD'}\n")
    read = load_job(job, ["train.optimizer.momentum=0.9"])
    assert read.train.optimizer == {"name": "torch.optim:SGD", "momentum": 0.9}
    assert read.named["train.optimizer"] == "torch.optim:SGD"
