"""A report says how often jumps were paid back, by confidence, or why it cannot."""

from pathlib import Path
from typing import Any

from study_builder import build_study

from hybrid_ray.calibration import CalibrationCounts
from hybrid_ray.report.study_page import write_report
from hybrid_ray.report.tables.calibration import comparison_calibration
from hybrid_ray.storage.json_files import read_json, write_json_atomic


def store(directory: Path, runs: str, **statistics: Any) -> int:
    """Change what runs of a study stored. Returns how many."""
    paths = sorted(directory.glob(f"{runs}/result.json"))
    for path in paths:
        result = read_json(path)
        result["statistics"] |= statistics
        write_json_atomic(path, result)
    return len(paths)


def forty_jumps() -> list[list[float]]:
    counts = CalibrationCounts()
    for number in range(40):
        counts.add(0.65 if number < 30 else 0.25, number % 3 > 0 if number < 30 else number < 34)
    return counts.rows


def test_a_study_shows_the_share_paid_back_by_confidence(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study")
    trials = store(directory, "trials/*", calibration=forty_jumps())
    assert store(directory, "confirmation/*/*", calibration=[])
    write_report(directory)
    markdown, page = ((directory / f"report.{ending}").read_text() for ending in ("md", "html"))
    assert f"| 0.6 to 0.7 | {30 * trials} | 0.65 | {20 * trials} | 67" in markdown
    for text in (markdown, page):
        assert f"{40 * trials} jumps of {trials} runs" in text
        assert "Brier score 0.23" in text
        assert "AUROC 0.60" in text
        assert "confirmation: no jump with a confidence" in text


def test_a_comparison_shows_it_for_each_configuration_that_predicts() -> None:
    def entry(name: str, *runs: Any, share: float = 0.4) -> dict[str, Any]:
        return {"name": name, "runs": [{"predicted_share": share, "calibration": rows} for rows in runs]}

    few = CalibrationCounts()
    for number in range(12):
        few.add(0.5, number > 5)
    entries = [
        entry("baseline", [], share=0.0),
        entry("hybrid", forty_jumps(), forty_jumps()),
        entry("wide", few.rows),
        entry("always", []),
        entry("failed", None),
    ]
    found = comparison_calibration({"configurations": entries})
    assert [table.title.rpartition(": ")[2] for table in found.tables] == ["hybrid", "wide"]
    assert "80 jumps of 2 runs" in found.tables[0].note
    assert "Too few jumps" in found.tables[1].note
    assert "Brier score 0" not in found.tables[1].note
    assert [note.partition(":")[0] for note in found.notes] == ["always"]
