"""Exit codes of the commands."""

__all__ = ["FAILED", "INTERRUPTED", "OK", "STOPPED", "WRONG"]

OK, FAILED, WRONG, INTERRUPTED, STOPPED = 0, 1, 2, 130, 143
