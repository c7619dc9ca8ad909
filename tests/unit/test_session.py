"""What the whole test session promises: nothing of the user's is read or written."""

import tempfile
from pathlib import Path

from hybrid_ray.data.cache import cache_root


def test_the_cache_of_a_session_is_a_temporary_one() -> None:
    assert cache_root(None).is_relative_to(Path(tempfile.gettempdir()))
