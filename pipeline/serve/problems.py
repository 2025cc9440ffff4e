"""Errors that a client is told, with their HTTP status."""

from collections.abc import Mapping
from types import MappingProxyType

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Problem(Exception):  # noqa: N818 - an answer, which need not be an error of the server
    """A request cannot be answered.

    Args:
        status: HTTP status.
        detail: One line for the client.
        headers: Of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, " ".join(detail.split()), headers


def invalid(detail: str) -> Problem:
    """422: the request does not say what was expected."""
    return Problem(422, detail)


def too_large(detail: str) -> Problem:
    """413: the body or the image exceeds a limit."""
    return Problem(413, detail)


def busy(detail: str) -> Problem:
    """429: too many requests are in progress."""
    return Problem(429, f"{detail} Try again later.", {"Retry-After": "1"})


def timed_out(seconds: float) -> Problem:
    """503: the answer took too long."""
    return Problem(503, f"the request took longer than {seconds:g} s.", {"Retry-After": "1"})


def failed() -> Problem:
    """500: a fault of the server, which only its log describes."""
    return Problem(500, "the server failed; its log has the reason.")
