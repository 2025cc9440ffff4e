"""What MLflow shows of a comparison beside its files."""

import json
from pathlib import Path

from mlflow import MlflowClient


def log_comparison(client: MlflowClient, run: str, place: Path) -> None:
    """Log the leaderboard in ``place`` as a table that MLflow shows, and the plots as pictures."""
    rows = json.loads((place / "leaderboard.json").read_text())
    client.log_table(run, {name: [row.get(name) for row in rows] for name in rows[0]}, "table.json")
    if (place / "plots").is_dir():
        client.log_artifacts(run, str(place / "plots"), "plots")
