"""The hardware and software of the runs in a folder, which runs that are added later must share: times are compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.errors import ConfigError
from hybrid_ray.storage.json_files import differences, read_json, write_json_atomic

__all__ = ["KeptMachine"]

_KEY = "runs_on"


class KeptMachine:
    """One entry of a JSON file: the machine of the first session. On a cluster only Ray knows it.

    Args:
        file: made if it is not there; its other entries are kept.
        instead: what a user on another machine can do, for the error.
    """

    def __init__(self, file: Path, *, instead: str) -> None:
        self._file, self._instead = file, instead

    @property
    def known(self) -> dict[str, Any] | None:
        """Hardware and software of the earlier runs (`fingerprint.machine`); None before the first.

        Raises:
            StoreError: the file is damaged.
        """
        found: dict[str, Any] | None = self._content().get(_KEY)
        return found

    def check(self, found: Mapping[str, Any]) -> None:
        """Compare the machine that trains now with the one of the earlier runs. The first session stores it.

        Raises:
            ConfigError: they differ.
            StoreError: the file is damaged, or can't be written.
        """
        known = self.known
        if known is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._file, {**self._content(), _KEY: found})
        elif changed := differences(known, found, "machine."):
            first = f"{self._file.parent} can't be continued here: its runs had other hardware or software"
            raise ConfigError([first, *changed, self._instead])

    def _content(self) -> dict[str, Any]:
        return dict(read_json(self._file)) if self._file.exists() else {}
