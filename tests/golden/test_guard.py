"""The trainer behaves as in its recorded traces (``guard.py``), as exactly as this machine can check."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from guard import TRACES, differences, machine
from trainer_traces import trainer_traces

RECORD = json.loads((TRACES / "trainer.json").read_text(encoding="utf-8"))
CHAOTIC = ("bfloat16 buffers", "trouble after a long jump")  # a difference in the last bit grows, so machines differ


@pytest.fixture(scope="module")
def traces() -> dict:
    return json.loads(json.dumps(trainer_traces()))


def test_every_trace_is_the_recorded_one_to_the_last_bit(traces: dict) -> None:
    other = list(differences(RECORD["machine"], machine()))
    if other:
        pytest.skip(f"recorded on another machine: {'; '.join(other)}")
    assert list(differences(RECORD["traces"], traces)) == []


@pytest.mark.parametrize("name", [name for name in RECORD["traces"] if name not in CHAOTIC])
def test_phases_and_losses_are_the_recorded_ones_on_any_machine(traces: dict, name: str) -> None:
    recorded, found = RECORD["traces"][name], traces[name]
    assert found["letters"] == recorded["letters"]
    assert found["batches"] == recorded["batches"]
    assert losses(found) == pytest.approx(losses(recorded), rel=1e-3, nan_ok=True)


def test_a_resume_in_the_middle_of_a_prediction_changes_nothing(traces: dict) -> None:
    assert traces["resumed in mid-Predict"] == traces["micro-corrections"]


def losses(trace: dict) -> list[float]:
    return [float.fromhex(loss) for loss in trace["losses"]]
