"""Which predictor, with which options: read, refused and carried over."""

from pathlib import Path

import pytest
import torch
from hybrid_toy import quick, toy_run

from hybrid_ray.config import HybridConfig, PredictorConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict, read_job, variant_jobs
from hybrid_ray.config.jobfile.yaml_core import parse_yaml
from hybrid_ray.errors import ConfigError

JOB = Path(__file__).parents[2] / "jobs/gpt2_124m_single_gpu.yaml"


def predictor(*overrides: str) -> PredictorConfig:
    return read_job(JOB, [f"hybrid.predictor{text}" for text in overrides]).hybrid.predictor


def test_a_name_alone_has_its_own_defaults_and_an_option_keeps_the_name() -> None:
    assert predictor("=snoo") == HybridConfig(predictor="snoo").predictor  # type: ignore[arg-type]
    assert predictor("=snoo").options == {"outer_lr": 0.6, "outer_momentum": 0.5}
    found = predictor("=snoo", ".outer_lr=0.9")
    assert (found.name, found.options["outer_lr"]) == ("snoo", 0.9)
    assert predictor(".gain=2").options == {"gain": 2.0, "time_constant": None}


@pytest.mark.parametrize(
    "written, part",
    [
        ({"predictor": {"name": "ema_nesterov", "outer_lr": 0.5}}, "outer_lr is not an option of ema_nesterov"),
        ({"predictor": {"name": "snoo", "outer_lt": 0.5}}, "did you mean 'outer_lr'?"),
        ({"predictor": {"gain": -1}}, "hybrid.predictor.gain is -1 but must be at least 0"),
        ({"predictor": {"name": "linear_fit", "fit_windows": 10**9}}, "hybrid.predictor.fit_windows is 1000000000 but"),
        ({"predictor": "snooo"}, "did you mean 'snoo'?"),
        ({"predictor": 3}, "hybrid.predictor is 3 but must be a name"),
    ],
)
def test_what_is_wrong_with_options_is_said(written: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict({"hybrid": written})
    assert any(part in problem for problem in caught.value.problems), caught.value.problems


def test_options_are_written_flat_and_read_back() -> None:
    job = job_from_dict({"hybrid": {"predictor": {"name": "slow_momentum", "alpha": 4}}})
    text = dump_job(job)
    assert parse_yaml(text, source="text")["hybrid"]["predictor"]["alpha"] == 4.0
    assert job_from_dict(parse_yaml(text, source="text")) == job


def test_a_variant_may_change_an_option() -> None:
    job = job_from_dict({"compare": {"variants": {"far": {"hybrid.predictor.gain": 2}}}})
    assert variant_jobs(job)["far"].hybrid.predictor.options["gain"] == 2.0


@pytest.mark.parametrize("name", ["ema_nesterov", "snoo", "linear_fit", "slow_momentum"])
def test_a_reset_predictor_is_a_new_one(name: str) -> None:
    trainer, batches = toy_run(quick(predictor=name), total_steps=200)
    used = trainer._cycle.predictor
    new = toy_run(quick(predictor=name), total_steps=200)[0]._cycle.predictor.state_dict()
    for _ in range(40):
        trainer.step(batches)
    assert used.state_dict()["numbers"] != new["numbers"]
    if used.window_open:
        used.close_window(0)
    used.reset()
    state = used.state_dict()
    assert state["numbers"] == new["numbers"]
    for buffers, other in zip(state["buffers"].values(), new["buffers"].values(), strict=True):
        for tensor, fresh in zip(buffers["tensors"], other["tensors"], strict=True):
            assert torch.equal(tensor, fresh)
