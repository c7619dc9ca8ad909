"""What was measured of a device, shared out over phases: by hand, and as a law."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_ray.training.telemetry.phase_meter import PhaseMeter


def test_phases_longer_than_an_interval_get_what_they_drew() -> None:
    meter = PhaseMeter()
    meter.spent("full", 0.0, 2.0)
    meter.spent("predict", 2.0, 4.0)
    for second in range(4):
        busy = second < 2
        meter.measured(second, second + 1.0, joules=300.0 if busy else 100.0, utilisation=90.0 if busy else 10.0)
    meter.finish()
    found = meter.summary()
    assert found["gpu_energy_joules"] == 800.0
    assert found["gpu_mean_power_watts"] == 200.0
    assert found["gpu_mean_utilisation_percent"] == 50.0
    assert found["gpu_phases"]["full"] == {
        "seconds": 2.0, "energy_joules": 600.0, "mean_power_watts": 300.0, "mean_utilisation_percent": 90.0,
    }  # fmt: skip
    assert found["gpu_phases"]["predict"]["energy_joules"] == 200.0


def test_short_phases_share_an_interval_by_time_and_the_rest_is_other() -> None:
    meter = PhaseMeter()
    meter.spent("full", 0.0, 0.5)
    meter.spent("predict", 0.5, 0.6)
    meter.measured(0.0, 1.0, joules=100.0, utilisation=None)  # ends after what is known: it waits
    assert meter.summary() == {}
    meter.spent("full", 0.9, 1.9)
    meter.measured(1.0, 2.0, joules=100.0, utilisation=None)
    meter.finish()
    phases = meter.summary()["gpu_phases"]
    assert phases["full"]["energy_joules"] == pytest.approx(60.0 + 90.0)
    assert phases["predict"]["energy_joules"] == pytest.approx(10.0)
    assert phases["other"]["energy_joules"] == pytest.approx(30.0 + 10.0)
    assert "mean_utilisation_percent" not in phases["full"]  # the device did not say


def test_a_device_that_tells_no_energy_has_none() -> None:
    meter = PhaseMeter()
    meter.spent("full", 0.0, 1.0)
    meter.measured(0.0, 1.0, joules=None, utilisation=50.0)
    assert meter.summary() == {
        "gpu_seconds": 1.0,
        "gpu_mean_utilisation_percent": 50.0,
        "gpu_phases": {"full": {"seconds": 1.0, "mean_utilisation_percent": 50.0}},
    }


PIECES = st.lists(
    st.tuples(st.sampled_from(["full", "predict", "gap"]), st.floats(0.001, 3.0)), min_size=1, max_size=30
)


@given(steps=PIECES, measured=st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0.0, 900.0)), min_size=1, max_size=30))
def test_no_joule_and_no_second_is_lost_or_made(
    steps: list[tuple[str, float]], measured: list[tuple[float, float]]
) -> None:
    """However steps and samples fall, in whatever order they are told."""
    meter, clock, samples = PhaseMeter(), 0.0, iter(measured)
    time = total = seconds = 0.0
    for phase, length in [*steps, *[("gap", 0.1)] * len(measured)]:
        clock += length
        if phase != "gap":
            meter.spent(phase, clock - length, clock)
        sample = next(samples, None)
        if sample is not None:
            meter.measured(time, time + sample[0], joules=sample[1], utilisation=50.0)
            time, total, seconds = time + sample[0], total + sample[1], seconds + sample[0]
    meter.finish()
    phases = meter.summary()["gpu_phases"]
    assert sum(phase["seconds"] for phase in phases.values()) == pytest.approx(seconds)
    assert sum(phase["energy_joules"] for phase in phases.values()) == pytest.approx(total, abs=1e-6)


def warnings_of(utilisation: float, *, seconds: int, training: float = 1.0) -> int:
    meter, heard = PhaseMeter(), []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    log = logging.getLogger("hybrid_ray")
    log.addHandler(handler)
    try:
        for second in range(seconds):
            meter.spent("full", float(second), second + training)
            meter.spent("full", second + 1.0, second + 1.0)  # known up to here
            meter.measured(float(second), second + 1.0, joules=None, utilisation=utilisation)
    finally:
        log.removeHandler(handler)
    assert all("micro-batch may be too small" in record.getMessage() for record in heard)
    return len(heard)


def test_an_idle_device_is_told_once_and_a_busy_one_never() -> None:
    assert warnings_of(5.0, seconds=60) == 1
    assert warnings_of(19.0, seconds=10) == 1
    assert warnings_of(5.0, seconds=9) == 0  # too short to say
    assert warnings_of(21.0, seconds=60) == 0


def test_idle_between_steps_is_no_idle_training() -> None:
    """Ten seconds in which the run evaluates for most of the time are not ten seconds of training."""
    assert warnings_of(5.0, seconds=30, training=0.2) == 0
    assert warnings_of(5.0, seconds=60, training=0.2) == 1
