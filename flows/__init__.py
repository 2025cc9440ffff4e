"""Prefect flows: when and in which order stages run; never what they do.

Prefect reads its settings when it is imported, so they are set here, before any flow's module imports it.
"""

import os
from pathlib import Path

from pipeline.core import telemetry

telemetry.off()
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
if "PREFECT_API_URL" not in os.environ:
    # Without a server Prefect starts one for the time of the flow; its database stays in the repository.
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_ENABLED", "true")
