"""The shipped notebook runs from top to bottom, on a study that was really run, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from hybrid_ray.report.headline import headline
from hybrid_ray.report.load import load_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore_results.ipynb"


def execute(folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def test_it_runs_on_a_real_study_and_shows_what_was_found(micro_study: Path) -> None:
    notebook = execute(micro_study.parents[1])
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(str(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    assert headline(load_study(micro_study)).text in shown
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures >= 9
    tables = "".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    for column in ("net_speedup", "by_hand", "weight 80", "confidence", "loss_baseline", "test_loss"):
        assert column in tables


def test_without_a_study_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match=r"there is no study under .*hybrid-ray run jobs/local\.yaml"):
        execute(tmp_path)


def test_it_is_committed_clean() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
