"""Logging of a comparison to MLflow."""

import json
from pathlib import Path

from mlflow import MlflowClient


def log_comparison(client: MlflowClient, run: str, directory: Path) -> None:
    """Log the leaderboard in ``directory`` as a table, and its plots as images."""
    rows = json.loads((directory / "leaderboard.json").read_text())
    client.log_table(run, {name: [row.get(name) for row in rows] for name in rows[0]}, "table.json")
    if (directory / "plots").is_dir():
        client.log_artifacts(run, str(directory / "plots"), "plots")
