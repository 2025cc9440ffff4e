"""Prefect flows: scheduling of stages, not their work.

Prefect reads its settings at import, so they are set here, before any module of this package imports it.
"""

import os
from pathlib import Path

from pipeline.core import telemetry

telemetry.off()
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
if "PREFECT_API_URL" not in os.environ:
    # Without a server Prefect starts a temporary one; its database stays in the repository.
    os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_ENABLED", "true")
