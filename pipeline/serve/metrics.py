"""The server's figures, in Prometheus' text format."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WEIGHTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "sam_distillery"}
        self.requests = Counter("requests", "Answered requests.", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, **own)
        self.in_progress = Gauge("requests_in_progress", "Requests in progress.", **own)
        self.batch = Histogram("batch_size", "Prompts or images of a model call.", ["kind"], buckets=_WEIGHTS, **own)
        self.queue = Gauge("queue_jobs", "Jobs that wait for the model thread.", **own)
        self.lookups = Counter("embedding_lookups", "Embeddings asked for.", ["result"], **own)
        self.entries = Gauge("embeddings_stored", "Images with embeddings in memory.", **own)
        self.nbytes = Gauge("embeddings_stored_bytes", "Bytes of images and embeddings in memory.", **own)
        self.model = Gauge("model_info", "The served model.", ["model", "precision", "version", "digest"], **own)
        self.swaps = Counter("model_changes", "Models taken up or refused while serving.", ["result"], **own)

    def stored(self, entries: int, nbytes: int) -> None:
        """Set the figures of the store."""
        self.entries.set(entries)
        self.nbytes.set(nbytes)

    def batched(self, kind: str, weight: int) -> None:
        """Record a model call."""
        self.batch.labels(kind).observe(weight)

    def serving(self, model: str, precision: str, version: str, digest: str) -> None:
        """Set the served model."""
        self.model.clear()
        self.model.labels(model, precision, version, digest).set(1)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)
