"""The import rule of the design, read off the source: who may import whom, and where ray and optuna may appear."""

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hybrid_ray"
FOUNDATION = {"errors", "version", "processors", "config", "run_result", "storage"}
PIECES = FOUNDATION | {"objective", "models", "data", "optim"}
TRAINING = PIECES | {"method", "tasks", "memory", "training"}
EVALUATION = TRAINING | {"report", "evaluation"}
ALLOWED = {
    "errors": set(),
    "version": set(),
    "processors": set(),
    "calibration": set(),
    "config": {"errors"},
    "run_result": {"errors", "config"},
    "storage": FOUNDATION,
    "objective": FOUNDATION,
    "models": FOUNDATION,
    "data": FOUNDATION,
    "optim": FOUNDATION,
    "report": FOUNDATION | {"objective", "calibration"},
    "method": PIECES | {"calibration"},
    "tasks": PIECES | {"method"},
    "memory": PIECES | {"method", "tasks"},
    "training": PIECES | {"method", "tasks", "memory"},
    "evaluation": TRAINING | {"report"},
    "ray_tune": EVALUATION | {"study"},
    "study": EVALUATION | {"ray_tune"},
    "doctor": {"data", "training", "ray_tune", "errors", "processors"},
    "starter": {"errors", "Task"},  # its task is a user's, who knows `hybrid_ray.Task`
    "ladder": EVALUATION | {"study", "ray_tune"},
    "cli": {"version"} | EVALUATION | {"study", "ray_tune", "ladder", "doctor", "starter"},
}
"""Each part of the package and the parts it may import: no import runs upward. The study starts Ray where it is needed,
and Ray's side of a search writes to the study's directory, so these two know each other."""
RAY_AT = {"training/ray_worker.py", "ray_tune"}
OPTUNA_AT = {"ray_tune", "report/load.py"}
MOST_FILES = 14


def name_of(path: Path) -> str:
    """Of a module, dotted; of a folder's ``__init__``, the folder's."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Like ast.walk, but not into functions: what stands there is imported later. TYPE_CHECKING's imports count."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from at_import(child)


def imported(path: Path, walk: Callable[[ast.AST], Iterator[ast.AST]] = ast.walk) -> Iterator[str]:
    for node in walk(ast.parse(path.read_text())):
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


def test_no_two_modules_import_each_other() -> None:
    paths = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = {
        name: {other if other in paths else other.rpartition(".")[0] for other in imported(path, at_import)}
        & set(paths)
        for name, path in paths.items()
    }
    assert "hybrid_ray.data.batches" in graph["hybrid_ray.data.corpus"], "is this test reading the imports?"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in modules()}), ids=lambda path: str(path.relative_to(PACKAGE.parent))
)
def test_no_folder_has_too_many_files(folder: Path) -> None:
    assert len([*folder.glob("*.py")]) <= MOST_FILES
