"""Errors a user can meet. Each names the value, the rule it breaks and the mend."""

from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Diverged",
    "HybridRayError",
    "NothingFinished",
    "StoreError",
    "StudyLocked",
    "TrialOutOfMemory",
    "UnsupportedOptimizer",
]


class HybridRayError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(HybridRayError, ValueError):
    """A job, a setting or an argument that cannot work. Lists every problem found, not only the first.

    Args:
        problems: one sentence each: the value, the rule, the mend.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class UnsupportedOptimizer(HybridRayError, TypeError):
    """The optimizer needs a closure of its own (LBFGS) or is not a ``torch.optim.Optimizer``."""


class Diverged(HybridRayError, ArithmeticError):
    """Training cannot go on: non-finite numbers came back after every recovery action was tried."""


class TrialOutOfMemory(HybridRayError, MemoryError):
    """A run asked for more device memory than there is. Not retried: it would only fail again."""


class NothingFinished(HybridRayError):
    """None of several runs finished, so there is nothing to choose from."""


class StoreError(HybridRayError):
    """A study directory that cannot be read or written."""


class StudyLocked(StoreError):
    """Another process writes into this study, ladder, comparison or run."""


class CheckpointError(HybridRayError):
    """No usable checkpoint: missing, truncated, altered, or made by another configuration."""
