"""The phase machine has the states of its drawing and no others, whatever comes in."""

import re
from itertools import groupby, pairwise

import pytest
from hybrid_toy import quick
from hypothesis import given
from hypothesis import strategies as st

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.phases import Phase, PhaseMachine

CONFIGS = st.builds(
    HybridConfig,
    warmup_steps=st.integers(0, 6),
    full_steps=st.integers(1, 6),
    prediction_horizon=st.integers(1, 8),
    correction_interval=st.integers(0, 4),
    correct_steps=st.integers(0, 5),
    off_fraction=st.sampled_from([0.0, 0.25]),
)
LENGTHS = st.none() | st.integers(1, 80)


def letters(config: HybridConfig, entries: list[int], falls: list[bool]) -> str:
    """The run's letters, with what wants to be predicted (0: nothing) and where it falls back, step by step."""
    machine, seen = PhaseMachine(config), ""
    for entry, fall in zip(entries, falls, strict=True):
        position = machine.position
        seen += position.letter
        assert (position.predicted > 0) == (position.phase is Phase.PREDICT or position.micro)
        assert position.predicted <= position.horizon
        machine.advance(entry=entry, fall_back=fall)
    return seen


@given(config=CONFIGS, data=st.data())
def test_every_run_is_a_walk_through_the_drawing(config: HybridConfig, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 120))
    entries = data.draw(st.lists(st.integers(0, 8), min_size=steps, max_size=steps))
    falls = data.draw(st.lists(st.sampled_from([False] * 9 + [True]), min_size=steps, max_size=steps))
    seen = letters(config, entries, falls)
    allowed = {"WW", "WF", "FF", "FP", "PP", "PM", "MP", "PC", "PF", "CC", "CP", "CF", "MF"}
    assert {a + b for a, b in pairwise(seen)} <= allowed
    assert seen.count("W") <= config.warmup_steps
    assert "M" not in seen or config.correction_interval
    if not any(falls):
        stretches = [len(run) for run in re.findall("F+(?=P)", seen)]
        assert all(run % config.full_steps == 0 for run in stretches)
        assert re.fullmatch(f"W{{0,{config.warmup_steps}}}(F+|P[PM]*|C{{0,{config.correct_steps}}})*", seen)


@given(config=CONFIGS, data=st.data())
def test_a_recording_is_followed_to_the_letter(config: HybridConfig, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 120))
    entries = data.draw(st.lists(st.integers(0, 8), min_size=steps, max_size=steps))
    falls = data.draw(st.lists(st.sampled_from([False] * 9 + [True]), min_size=steps, max_size=steps))
    recording = letters(config, entries, falls)
    machine, seen = PhaseMachine(config, recording), ""
    for _ in range(steps + 3):
        position = machine.position
        seen += position.letter
        if position.phase is Phase.PREDICT and position.index == 1:
            assert 1 <= position.horizon <= 8
        machine.advance(entry=data.draw(st.integers(0, 3)), fall_back=data.draw(st.booleans()))
    assert seen == recording + "FFF"


@given(config=CONFIGS, data=st.data())
def test_a_stopped_machine_goes_on_where_it_was(config: HybridConfig, data: st.DataObject) -> None:
    entries = data.draw(st.lists(st.integers(0, 8), min_size=30, max_size=30))
    stop = data.draw(st.integers(0, 29))
    first = PhaseMachine(config)
    for entry in entries[:stop]:
        first.advance(entry=entry)
    second = PhaseMachine(config)
    second.load_state_dict(first.state_dict())
    for entry in entries[stop:]:
        assert first.position == second.position
        assert first.decides == second.decides
        first.advance(entry=entry)
        second.advance(entry=entry)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "W5 F10 P5 C5 P5 C5 P5 C5 P5"),
        ({"correct_steps": 0, "full_steps": 5, "prediction_horizon": 3}, "W5 F5 P3 F5 P3 F5 P3"),
        ({"correction_interval": 2}, "W5 F10 P2 M1 P2 M1 P1 C5 P2"),
        ({"correction_interval": 5, "warmup_steps": 0}, "F10 P5 C5 P5"),
    ],
)
def test_cycles(changes: dict, expected: str) -> None:
    pieces = [(part[0], int(part[1:])) for part in expected.split()]
    config = quick(**changes)
    steps = sum(count for _, count in pieces)
    seen = letters(config, [config.prediction_horizon] * steps, [False] * steps)
    assert [(key, len(list(group))) for key, group in groupby(seen)] == pieces


def test_not_confident_is_full_again_and_again() -> None:
    assert letters(quick(warmup_steps=2), [0] * 40, [False] * 40) == "WW" + "F" * 38


def test_predicting_ends_for_the_last_part_and_a_cycle_that_cannot_end_is_not_begun() -> None:
    machine = PhaseMachine(quick(off_fraction=0.25), total_steps=40)
    over = []
    for _ in range(40):
        over.append(machine.over)
        machine.advance()
    assert over.index(True) == 29  # after the 30th step
    machine = PhaseMachine(quick(), total_steps=20)
    for _ in range(9):
        machine.advance()
    assert machine.has_room(5)  # 10 done, 5 predicted, 5 corrected
    assert not machine.has_room(6)

    machine = PhaseMachine(quick(off_fraction=0.25), total_steps=84)  # predicting ends with step 63
    for _ in range(52):
        machine.advance()
    assert machine.has_room(5)  # 53 done, 5 predicted, 5 corrected
    assert not machine.has_room(6)


@given(config=CONFIGS, total=LENGTHS, data=st.data())
def test_no_cycle_reaches_into_the_last_part(config: HybridConfig, total: int | None, data: st.DataObject) -> None:
    machine, seen = PhaseMachine(config, total_steps=total), ""
    steps = total or 80
    for horizon in data.draw(st.lists(st.integers(1, 8), min_size=steps, max_size=steps)):
        seen += machine.position.letter
        machine.advance(entry=horizon if not machine.over and machine.has_room(horizon) else 0)
    if total and "P" in seen:
        end = steps * (1.0 - config.off_fraction)
        assert len(seen.rstrip("F")) <= end  # Correct too


@pytest.mark.parametrize("phases, match", [("WFX", "X"), ("PF", "start"), ("WFM", "'M' right after 'F'")])
def test_a_recording_that_no_run_makes_is_refused(phases: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PhaseMachine(quick(), phases)
