"""Switching off the telemetry of the tools used."""

import os

OFF = {
    "DO_NOT_TRACK": "true",  # "1" does not stop MLflow, which compares with "true"
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Environment variables that switch off the telemetry of DVC, MLflow and Prefect."""


def off() -> None:
    """Switch telemetry off in this process and its children, unless the environment already sets it."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
