"""The shipped notebook runs from top to bottom, on a study that was really run, and is committed without outputs."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from hybrid_ray.errors import StoreError
from hybrid_ray.report.headline import headline
from hybrid_ray.report.load import load_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore_results.ipynb"


def test_it_runs_on_a_real_study_and_shows_what_was_found(micro_study: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(micro_study.parents[1])}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(str(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    assert headline(load_study(micro_study)).text in shown
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures >= 9
    tables = "".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    for column in ("net_speedup", "by_hand", "weight 80", "confidence", "loss_baseline", "test_loss"):
        assert column in tables


def test_without_a_study_its_first_cell_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    code = "\n".join(line for line in first.splitlines() if not line.startswith("%"))  # magic is IPython's
    with (
        pd.option_context("display.precision", 6),  # which the cell changes
        pytest.raises(StoreError, match=r"there is no study under .*hybrid-ray run jobs/local\.yaml"),
    ):
        exec(code, {})


def test_it_is_committed_clean() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
