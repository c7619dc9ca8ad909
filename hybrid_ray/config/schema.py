"""A job described for editors (JSON schema) and for readers (a page of tables), both from the configuration itself."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.predictors import OPTIONS

__all__ = ["job_schema", "settings_page"]

_TOP = """# Settings

Every setting of a job file, with its default. Written by `hybrid-ray schema --markdown`; do not edit.

A setting is written in its section (`train: {steps: 800}`) or given on the command line (`--set train.steps=800`).
Files are read as YAML 1.2: `0600` is 600, `1e-3` a number, `yes` text. For completion and checks in an editor, write
the schema to a file (`hybrid-ray schema > job.schema.json`) and begin a job with
`# yaml-language-server: $schema=job.schema.json`.
"""


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    schema = TypeAdapter(JobConfig).json_schema()
    schema["$defs"]["HybridConfig"]["properties"]["predictor"]["default"] = JobConfig().hybrid.predictor.name
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A job of hybrid-ray"}


def settings_page() -> str:
    """Markdown: a table a section."""
    schema = job_schema()
    own = {name: rule for name, rule in schema["properties"].items() if name not in _sections()}
    lines = [_TOP, "## The job itself", "", *_table("", own)]
    for name, kind in _sections().items():
        part = schema["$defs"][kind.__name__]
        lines += [
            "",
            f"## {name}",
            "",
            " ".join(part["description"].split()),
            "",
            *_table(f"{name}.", part["properties"]),
        ]
    for name, kind in OPTIONS.items():
        part = TypeAdapter(kind).json_schema()
        if part["properties"] and name != "reversed":
            title = f"## hybrid.predictor: {name}"
            lines += ["", title, "", part["description"], "", *_table("hybrid.predictor.", part["properties"])]
    return "\n".join(lines) + "\n"


def _sections() -> dict[str, type]:
    """The sections of a job, by name."""
    return {field.name: field.type for field in dataclasses.fields(JobConfig) if dataclasses.is_dataclass(field.type)}  # type: ignore[misc]


def _table(above: str, settings: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("| setting | value | default | meaning |", "|---|---|---|---|")
    for name, rule in settings.items():
        default = json.dumps(rule["default"]) if "default" in rule else "{}"
        yield f"| `{above}{name}` | {_values(rule)} | `{default}` | {rule.get('description', '')} |"


def _values(rule: Mapping[str, Any]) -> str:
    """What a setting may be, from its schema."""
    if "anyOf" in rule:
        return " or ".join(_values(part) for part in rule["anyOf"])
    if "const" in rule or "enum" in rule:
        return ", ".join(f"`{choice}`" for choice in rule.get("enum", [rule.get("const")]))
    kind = rule.get("type")
    if kind in ("integer", "number"):
        low = (
            f"{_number(rule['minimum'])} to" if "minimum" in rule else f"above {_number(rule['exclusiveMinimum'])}, to"
        )
        return f"{'whole, ' if kind == 'integer' else ''}{low} {_number(rule['maximum'])}"
    if kind == "array":
        return f"list: {_values(rule['items'] if 'items' in rule else rule['prefixItems'][0])}"
    return {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}.get(str(kind), "mapping")


def _number(value: float) -> str:
    return (
        f"{value:,}" if isinstance(value, int) and value < 10**9 else f"{value:g}".replace("e+0", "e").replace("+", "")
    )
