"""The import rule of the design, read off the source: who may import whom, and where ray and optuna may appear."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hybrid_ray"
FOUNDATION = {"errors", "config", "records", "version", "durable", "sources"}
PIECES = FOUNDATION | {"objective", "models", "data", "optim"}
RESULTS = {"results"}
ALLOWED = {
    "errors": set(),
    "version": set(),
    "durable": set(),
    "sources": set(),
    "processors": set(),
    "config": {"errors"},
    "records": {"errors", "config"},
    "jobfile": FOUNDATION,
    "objective": FOUNDATION,
    "models": FOUNDATION,
    "data": FOUNDATION,
    "optim": FOUNDATION,
    "results": FOUNDATION | {"objective", "jobfile"},
    "memory": PIECES | {"hybrid"},
    "hybrid": PIECES,
    "train": PIECES | RESULTS | {"hybrid", "memory"},
    "evaluate": PIECES | RESULTS | {"hybrid", "memory", "train", "jobfile"},
    "tune": PIECES | RESULTS | {"hybrid", "memory", "train", "evaluate", "jobfile", "processors"},
    "doctor": {"train", "processors"},
    "cli": PIECES | RESULTS | {"tune", "evaluate", "jobfile", "doctor", "data"},
}
RAY_AT = {"train/worker.py", "tune"}
OPTUNA_AT = {"tune", "results/load.py"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def piece(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_what_its_layer_may(path: Path) -> None:
    mine = piece(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("hybrid_ray.")} - {mine}
    assert others <= ALLOWED[mine], f"{mine} may not import {others - ALLOWED[mine]}"


@pytest.mark.parametrize("package, places", [("ray", RAY_AT), ("optuna", OPTUNA_AT)])
def test_ray_and_optuna_stay_in_their_places(package: str, places: set[str]) -> None:
    users = {path for path in modules() if any(name.split(".")[0] == package for name in imported(path))}
    strays = {
        str(path.relative_to(PACKAGE)) for path in users if not {piece(path), str(path.relative_to(PACKAGE))} & places
    }
    assert not strays
    assert users, f"nothing imports {package}: is this test looking in the right place?"
