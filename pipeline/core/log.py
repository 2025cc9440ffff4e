"""The interface through which a stage reports metrics."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Log(Protocol):
    """Report metrics; units are in the names (``latency_ms``, ``size_mib``)."""

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Report ``metrics`` measured at ``step``."""


def silent(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Discard metrics (tests, notebooks)."""
