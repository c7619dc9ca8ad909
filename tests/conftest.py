"""Settings every test shares: one thread, a quiet Ray that obeys nobody else, a corpus cache of the session's own."""

import os
import secrets
import shutil
import sys
import tempfile

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Processes that tests start inherit it. Nothing is read from or written to the user's own cache.
_CACHE = os.environ["HYBRID_RAY_CACHE"] = tempfile.mkdtemp(prefix="hybrid-ray-tests-")

settings.register_profile("any machine", deadline=None)  # a busy one is slow, which is no fault of an example
settings.load_profile("any machine")


@pytest.fixture
def path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """``sys.path``, to which a user's own parts add their folders, is restored after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)
