"""Job files: what ships parses, what is wrong is listed whole, what is dumped reads back equal."""

import math
from pathlib import Path

import pytest
import yaml

from hybrid_ray.config import HybridConfig, JobConfig, RunConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict, read_job
from hybrid_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_job_parses_and_survives_a_round_trip(path: Path) -> None:
    job = read_job(path)
    assert job.name == path.stem
    assert job_from_dict(yaml.safe_load(dump_job(job))) == job


def test_every_promised_job_ships() -> None:
    assert {"local", "gpt2_124m_single_gpu", "gpt2_124m_cluster"} <= {path.stem for path in JOBS}


def problems_of(**data: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        job_from_dict(data)
    return caught.value.problems


def test_all_problems_are_listed_at_once() -> None:
    found = problems_of(
        name="a/b", train={"stepps": 3, "batch_size": "many"}, hybrid={"full_steps": 0}, frontier={"lengths": [1]}
    )
    assert len(found) == 5
    text = "\n".join(found)
    for part in (
        "did you mean 'steps'",
        "train.batch_size is 'many'",
        "full_steps is 0",
        "lengths is",
        "name is 'a/b'",
    ):
        assert part in text


@pytest.mark.parametrize(
    "data, part",
    [
        ({"train": 3}, "train is 3 but must be a section"),
        ({"train": {"compile": 1}}, "train.compile is 1 but must be true or false"),
        ({"train": {"steps": True}}, "train.steps is True but must be a whole number"),
        ({"train": {"steps": 20}}, "nothing would ever be predicted"),
        ({"train": {"batch_size": 6, "micro_batch_size": 4}}, "must divide"),
        ({"train": {"batch_size": 5}, "resources": {"workers": 2}}, "multiple of resources.workers"),
        ({"hybrid": {"predictor": "none"}}, "'none', which predicts nothing"),
        ({"hybrid": {"predictor": "random"}}, "replays another run"),
        ({"hybrid": {"predictor": "momentum"}, "train": {"optimizer": "sgd"}}, "optimizer keeps no momentum"),
        ({"train": {"sequence_length": 2048}, "data": {"heldout_tokens": 4096}}, "at least 8 x train.sequence_length"),
        ({"seed": -1}, "seed is -1 but must be at least 0"),
        ({"train": {"learning_rate": math.inf}}, "learning_rate is inf"),
        ({"search": {"sampler": "grid"}}, "search.sampler is 'grid' but must be one of tpe, random"),
        ({"confirm": {"seeds": 2}}, "seeds is 2 but must be at least 3"),
        ({"data": {"vocab_size": 512}}, "bytes tokenizer has a fixed one"),
    ],
)
def test_a_wrong_value_names_value_rule_and_mend(data: dict[str, object], part: str) -> None:
    assert any(part in problem for problem in problems_of(**data))


def test_overrides_apply_and_bad_ones_are_refused() -> None:
    job = read_job(ROOT / "jobs/local.yaml", ["train.steps=800", "train.learning_rate=1e-3", "data.corpus=random"])
    assert (job.train.steps, job.train.learning_rate, job.data.corpus) == (800, 1e-3, "random")
    with pytest.raises(ConfigError) as caught:
        read_job(ROOT / "jobs/local.yaml", ["train.steps", "name.deeper=3"])
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "a: [", "- 1\n- 2\n"])
def test_what_is_not_a_plain_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_job(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml is not a file"):
        read_job(tmp_path / "nowhere.yaml")


def test_the_effective_batch_is_kept_over_workers_and_micro_batches() -> None:
    run = RunConfig(train=TrainConfig(batch_size=24, micro_batch_size=3), workers=2)
    assert run.accumulate * run.workers * run.micro_batch_size == 24
    assert run.accumulate == 4
    assert JobConfig().run().accumulate == 1


def test_cycle_counts_micro_corrections_but_none_right_before_correct() -> None:
    settings = HybridConfig(full_steps=5, prediction_horizon=6, correction_interval=2, correct_steps=1)
    assert settings.cycle_steps == 5 + 6 + 2 + 1
