"""Marks for tests with Ray in their own process: warnings of Ray's that are not errors of ours."""

import pytest

RAY_WARNINGS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and files of processes that are gone
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # notices of what will change
]
