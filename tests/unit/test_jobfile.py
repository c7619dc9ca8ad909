"""Job files: what ships parses, what is wrong is listed whole, what is dumped reads back equal."""

import math
import re
from pathlib import Path

import pytest
import yaml

from hybrid_ray.cli import main
from hybrid_ray.config import HybridConfig, JobConfig, RunConfig, TaskConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict, read_job
from hybrid_ray.config.jobfile.yaml_core import dump_yaml, parse_yaml
from hybrid_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
JOBS = sorted({*(ROOT / "jobs").rglob("*.yaml")} - {*(ROOT / "jobs/cluster").iterdir()})
OURS = sorted([*JOBS, *(ROOT / "examples").glob("*.yaml"), *(ROOT / "hybrid_ray/starter").glob("*.yaml")])


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_job_parses_and_survives_a_round_trip(path: Path) -> None:
    job = read_job(path)
    assert job.name == path.stem
    assert job_from_dict(yaml.safe_load(dump_job(job))) == job


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_shipped_job_decays_to_zero_or_repeats_a_published_one_and_says_how_its_rate_was_tuned(path: Path) -> None:
    """A rate that stays high at the end, or that nobody tuned, makes a weak baseline, which flatters every method."""
    job = read_job(path)
    assert job.published or (job.train.schedule, job.train.min_lr_ratio) == ("linear", 0.0)
    comments = " ".join(re.findall(r"#\s*(.*)", path.read_text(encoding="utf-8")))
    assert re.search(r"[Ll]earning rates?\b", comments)
    assert re.search(r"\b(are|is|not|then|was|were) tuned\b|\btunes\b", comments)


def test_every_promised_job_ships() -> None:
    assert {"local", "gpt2_124m_single_gpu", "gpt2_124m_cluster", "gpt2_124m_findings"} <= {path.stem for path in JOBS}


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
        "did you mean 'train.steps'",
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
        ({"data": {"vocab_size": 512}}, "bytes tokenizer always has 257"),
        ({"seed": 2**63}, "seed is 9223372036854775808 but must be at most"),
        ({"search": {"seed": -1}}, "search.seed is -1 but must be at least 0"),
        ({"train": {"threads": 10**20}}, "train.threads is 100000000000000000000 but must be at most"),
        ({"train": {"steps": 10**24}}, "train.steps is 1000000000000000000000000 but must be at most"),
        ({"train": {"learning_rate": "3e-3"}}, "train.learning_rate is '3e-3' but must be a number"),
        ({"train": {"steps": 20.0}}, "train.steps is 20.0 but must be a whole number"),
        ({"train": {"evaluations": 700}}, "train.evaluations is 700 but must be at most train.steps (600)"),
        ({"train": {"betas": [0.9]}}, "train.betas is [0.9] but must be"),
        ({"train": {"micro_batch_size": "most"}}, "'most' but must be a whole number or one of auto"),
        ({"model": {"preset": "128M"}}, "model.preset is '128M' but must be one of"),
        ({"model": {"preset": "128M"}}, "did you mean '124M'?"),
        ({"search": {"steps": 5}}, "search.steps is not a setting: did you mean 'train.steps'?"),
        ({"trials": 5}, "trials is not a setting: did you mean 'search.trials'?"),
        ({"train": {3: 4}}, "train.3 is not a setting: this section has alpha"),
    ],
)
def test_a_wrong_value_names_value_rule_and_mend(data: dict[str, object], part: str) -> None:
    assert any(part in problem for problem in problems_of(**data))


def test_an_unknown_key_hides_no_other_problem() -> None:
    found = "\n".join(problems_of(trian={}, model={"preset": "huge"}, train={"weights": "bf16"}))
    for part in ("did you mean 'train'", "model.preset is 'huge'", "train.weights is 'bf16' but train.precision"):
        assert part in found


def test_a_setting_made_in_python_is_checked_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps=-3, batch_size=True)
    assert caught.value.problems == (
        "steps is -3 but must be at least 10",
        "batch_size is True but must be a whole number",
    )


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


@pytest.mark.parametrize(
    "text, value",
    [
        ("0600", 600),
        ("0o600", 384),
        ("0x1F", 31),
        ("-3", -3),
        ("1e-3", 1e-3),
        ("6.", 6.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("~", None),
        *((word, word) for word in ("1:30", "yes", "no", "on", "off", "2024-11-05", "1_000", "0b11", "y", ".")),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    for found in (parse_yaml(text, source="text"), parse_yaml(dump_yaml([value]), source="text")[0]):
        assert found == value
        assert type(found) is type(value)


def test_text_that_looks_like_a_number_survives_a_round_trip() -> None:
    words = ["0600", "1e3", "0o7", "0x1F", "1:30", "yes", "null", "1.", "2024-11-05", "<<", ""]
    job = job_from_dict({"task": {"factory": "a:B", "options": {word: word for word in words}}})
    assert job_from_dict(parse_yaml(dump_job(job), source="text")).task == TaskConfig(
        factory="a:B", options={word: word for word in words}
    )


DIGITS = "1" * 5000


@pytest.mark.parametrize(
    "text, part",
    [
        ("train:\n  steps: 20\n  device: cpu\n  steps: 30\n", "steps is set twice, in line 2 and in line 4"),
        ("name: 2024-13-45\ntrain: {steps: x}", "train.steps is 'x'"),
        ("seed: !!int abc", "is not valid YAML: invalid literal for int()"),
        (f"seed: {DIGITS}", "is not valid YAML: Exceeds the limit"),
        (f"seed: {'[' * 3000}{']' * 3000}", "are nested deeper than 50 levels"),
        (f"seed: \n{'- ' * 3000}", "are nested deeper than 50 levels"),
        ("seed: !!timestamp 2024-11-05", "could not determine a constructor"),
        ("seed: !!python/name:os.system x", "could not determine a constructor"),
        ("", "is empty: a job is a mapping of settings"),
        ("# nothing yet\n", "is empty: a job is a mapping of settings"),
    ],
)
def test_what_a_job_file_may_not_hold_is_one_line(
    tmp_path: Path, text: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert main(["plan", str(path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert part in said[0]
    assert said[0].startswith("error: ")
    assert len(said) == 2


@pytest.mark.parametrize("value", [f"{DIGITS}", "[" * 3000, "{a: 1, a: 2}", "!!int abc"])
def test_an_override_is_read_by_the_same_rules(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--set 'seed=.* is not valid YAML") as caught:
        read_job(ROOT / "jobs/local.yaml", [f"seed={value}"])
    assert len(caught.value.problems) == 1


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
