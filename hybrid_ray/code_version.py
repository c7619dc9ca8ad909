"""Hashes of this package's own sources: what a stored result came from. A version stays while one works on the code."""

import hashlib
from functools import cache
from pathlib import Path

__all__ = ["RUN_PARTS", "SCORE_PARTS", "source_hashes"]

RUN_PARTS = ("config", "models", "data", "optim", "method", "training")
"""What a run passes through."""

SCORE_PARTS = ("objective.py", "evaluation/frontier.py", "evaluation/scoring.py", "ray_tune/trial.py")
"""What its score passes through after that."""


@cache
def source_hashes(*parts: str) -> dict[str, str]:
    """A short hash for each file or folder, named relative to the package.

    Bytes are hashed, so a changed comment counts as well: what a change means can't be told from outside.
    """
    return {part: _hash(part) for part in parts}


def _hash(part: str) -> str:
    package = Path(__file__).parent
    path, digest = package / part, hashlib.sha256()
    for source in [path] if path.is_file() else sorted(path.rglob("*.py")):
        digest.update(source.relative_to(package).as_posix().encode() + source.read_bytes())
    return digest.hexdigest()[:16]
