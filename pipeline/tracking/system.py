"""MLflow's system metrics: CPU, memory, disk, network and GPU usage during a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING


@contextmanager
def system_metrics(uri: str, run: str) -> Iterator[None]:
    """Log system metrics to a run if ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` is true.

    MLflow does this only for runs started by its fluent API, not for runs of its client, which are used here.

    Args:
        uri: URI of the store.
        run: Run id; the run must stay open within the context.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():  # type: ignore[no-untyped-call]
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run, tracking_uri=uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]
