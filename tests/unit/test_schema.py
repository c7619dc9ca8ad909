"""The schema of a job and the page of settings say what the configuration says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hybrid_ray.cli import main
from hybrid_ray.config.jobfile.yaml_core import parse_yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = {*(ROOT / "jobs/cluster").iterdir()}
JOBS = sorted({*(ROOT / "jobs").rglob("*.yaml"), *(ROOT / "examples").glob("*.yaml")} - MANIFESTS)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["schema", *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(capsys))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_fits_the_schema_which_finds_a_misspelt_setting_in_each_of_its_sections(
    path: Path, schema: dict[str, Any]
) -> None:
    job, check = parse_yaml(path.read_text(), source=path.name), jsonschema.Draft202012Validator(schema)
    assert [error.message for error in check.iter_errors(job)] == []
    sections = [name for name, part in job.items() if isinstance(part, dict)]
    assert {"train", "hybrid"} <= {*sections}
    wrong = {**job, **{name: {**job[name], "misspelt": 1} for name in sections}}
    assert {error.absolute_path[0] for error in check.iter_errors(wrong)} == {*sections}


@pytest.mark.parametrize(
    "job", ["train: {stepz: 3}", "train: {steps: 3}", "model: {preset: huge}", "hybrid: {total_steps: 9}", "trials: 3"]
)
def test_what_the_reader_refuses_does_not_fit(job: str, schema: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(job), schema)


def test_the_page_of_settings_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == printed(capsys, "--markdown"), "write it again: hybrid-ray schema --markdown > docs/settings.md"


def test_every_setting_has_a_description(schema: dict[str, Any]) -> None:
    for part in [schema, *schema["$defs"].values()]:
        for name, rule in part["properties"].items():
            assert "$ref" in rule or rule.get("description"), name
