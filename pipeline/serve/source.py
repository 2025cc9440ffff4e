"""Where the served model comes from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """A name of a model, which may come to mean another version. Methods may take long and are called in threads."""

    def version(self) -> str:
        """The version that the name means now.

        Raises:
            InputError: There is none, or the registry cannot be reached.
        """

    def fetch(self, version: str, directory: Path) -> Path:
        """Directory of a version's artifact; it may be written below ``directory``.

        Raises:
            InputError: There is no such version, or the registry cannot be reached.
        """


@dataclass(frozen=True)
class Artifact:
    """A `Source` that never changes."""

    directory: Path

    def version(self) -> str:
        """See `Source.version`."""
        return ""

    def fetch(self, version: str, directory: Path) -> Path:
        """See `Source.fetch`."""
        return self.directory
