"""A job that asks for a GPU and trains on the CPU is an error, told before the first step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro_runs import Listener, micro_run

from hybrid_ray.config import ResourcesConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.run_result import StepRecord
from hybrid_ray.training.hardware.placement import check_placement, choose_device
from hybrid_ray.training.loop import train
from hybrid_ray.training.ray_worker import fit_with_workers

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_a_build_without_cuda_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.device is 'cuda' .* is a build without CUDA: install a build"):
        choose_device(micro_run(device="cuda"))


@no_gpu
@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_a_variable_that_hides_every_gpu_is_named(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES is '.*', which hides all GPUs: unset it"):
        choose_device(micro_run(device="cuda"))


@no_gpu
def test_a_driver_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="no working NVIDIA driver"):
        choose_device(micro_run(device="cuda"))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_workers_that_would_hold_gpus_and_not_use_them_are_refused(device: str, tmp_path: Path) -> None:
    run = replace(micro_run(device=device), workers=2)
    with pytest.raises(ConfigError, match=r"gpus_per_worker is 0\.5 .* train\.device is '(auto|cpu)'"):
        fit_with_workers(
            run, directory=tmp_path, storage=tmp_path, name="run", max_failures=0,
            resources=ResourcesConfig(workers=2, gpus_per_worker=0.5),
        )  # fmt: skip


def test_weights_that_are_elsewhere_are_an_error() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))
    check_placement(module[0], torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"trains on cpu but 2 of its weights are on meta \(1\.weight"):
        check_placement(module, torch.device("cpu"))


def test_a_model_that_is_moved_while_it_trains_ends_the_run() -> None:
    """Whoever moves it (a callback, a library): the run does not go on as if nothing were."""
    models: list[torch.nn.Module] = []

    class Moves(Listener):
        def step(self, record: StepRecord) -> None:
            if record.step == 10:
                models[0].to("meta")

    def find(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "GPT2" and not models:
            models.append(module)

    handle = torch.nn.modules.module.register_module_forward_hook(find)
    try:
        with pytest.raises(ConfigError, match="weights are on meta"):
            train(micro_run(steps=20, evaluations=2), reporter=Moves())
    finally:
        handle.remove()
