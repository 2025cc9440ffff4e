"""The page at ``/`` and its files."""

from fastapi import FastAPI


def page(app: FastAPI) -> None:
    """Add the page's routes."""
