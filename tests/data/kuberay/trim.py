"""Trim KubeRay's published schemas to what checks the manifests in jobs/cluster.

    python tests/data/kuberay/trim.py ray.io_rayclusters.yaml ray.io_rayjobs.yaml

The files come from https://github.com/ray-project/kuberay, ray-operator/config/crd/bases at v1.7.0 (LICENSE is theirs).
At each object that a manifest has, all names of the schema are kept, so that a misspelt one is found; below names that
no manifest uses, nothing is.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
MANIFESTS = Path(__file__).parents[3] / "jobs/cluster"
KEPT = ("type", "enum", "required", "minimum", "maximum", "pattern", "anyOf", "x-kubernetes-int-or-string", "format")


def trimmed(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """The schema without descriptions, and without what lies below properties that no used value has."""
    found = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        objects = [value for value in used if isinstance(value, dict)]
        found["properties"] = {
            name: trimmed(inner, below) if (below := [value[name] for value in objects if name in value]) else {}
            for name, inner in schema["properties"].items()
        }
        found["additionalProperties"] = False
    elif "additionalProperties" in schema:
        objects = [value for value in used if isinstance(value, dict)]
        found["additionalProperties"] = trimmed(
            schema["additionalProperties"], [v for o in objects for v in o.values()]
        )
    if "items" in schema:
        found["items"] = trimmed(schema["items"], [item for value in used for item in value])
    return found


def main() -> None:
    """Write ``<kind>.json`` for each file of definitions."""
    for file in sys.argv[1:]:
        definition = yaml.safe_load(Path(file).read_text())["spec"]
        kind = definition["names"]["kind"]
        manifest = yaml.safe_load((MANIFESTS / f"{kind.lower()}.yaml").read_text())
        (version,) = (one for one in definition["versions"] if one["name"] == "v1")
        schema = trimmed(version["schema"]["openAPIV3Schema"], [manifest])
        schema["properties"]["metadata"] = {"type": "object"}
        (FOLDER / f"{kind}.json").write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
