"""MLflow's system metrics: use of processor, memory, disk, network and GPU while a run lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING


@contextmanager
def system_metrics(uri: str, run: str) -> Iterator[None]:
    """Log them to a run where ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` is true.

    MLflow itself does so for runs that its fluent calls start, and not for those of its client, which ours are.

    Args:
        uri: The store's address.
        run: The run's id; the run must be open until this ends.
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
