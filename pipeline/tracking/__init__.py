"""MLflow tracking of stages: one run per repetition, identified by the digest of its artifact.

Only this package and `pipeline.promote` use MLflow. Runs go to ``MLFLOW_TRACKING_URI``, or to ``mlflow.db`` in the
repository. A stage restored from DVC's cache has no run in a new database; one is then created from its card and
metrics, with the tag ``origin: cache``.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.core import process, provenance
from pipeline.core.artifact import CARD, METRICS, Card, read_metrics
from pipeline.core.config import PARAMS, Config
from pipeline.core.errors import InputError
from pipeline.core.preflight import check_tracking
from pipeline.core.stage import DVC_LOCK, Keys, Stage
from pipeline.core.tracking_uri import tracking_uri, without_password
from pipeline.tracking import database
from pipeline.tracking.comparison import log_comparison
from pipeline.tracking.inputs import log_dataset
from pipeline.tracking.system import system_metrics

EXPERIMENT = "sam-distillery"
# MLflow's defaults retry an unreachable server for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # a new database's tables
PARENT_RUN = "PIPELINE_PARENT_RUN"
"""Environment variable: id of the parent run of stages. Not MLflow's variable, since MLflow would resume that run."""
FLUSH_EVERY_S = 2.0
_LONGEST_VALUE = 6000
_LARGEST_BATCH = 500
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Store:
    """An open MLflow store and the experiment of all runs."""

    client: MlflowClient
    experiment: str
    uri: str

    @classmethod
    def open(cls) -> "Store":
        """Open the store, create database and experiment if missing, and close runs of dead processes.

        Raises:
            InputError: The store cannot be reached.
        """
        uri = tracking_uri()
        check_tracking(uri)
        try:
            database.create_if_missing(uri, _experiment)
            experiment = _experiment(uri)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, PermissionError, FileNotFoundError, NotADirectoryError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"MLflow at {without_password(uri)} cannot be used: {reason}. "
                "Start it, or unset MLFLOW_TRACKING_URI to use mlflow.db."
            ) from error
        store = cls(client, experiment, uri)
        store._sweep()
        return store

    def start(self, name: str, tags: Mapping[str, str]) -> str:
        """Start a run under the current parent run and return its id."""
        parent = os.environ.get(PARENT_RUN)
        all_tags = {
            **provenance.git(),
            **provenance.host(),
            "pid": str(os.getpid()),
            "mlflow.source.name": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:250],
            "mlflow.source.type": "LOCAL",
            **({"mlflow.parentRunId": parent} if parent else {}),
            **tags,
        }
        return str(self.client.create_run(self.experiment, run_name=name, tags=all_tags).info.run_id)

    def find(self, target: str, digest: str) -> str | None:
        """Id of the latest finished run that made ``target`` with this ``digest``."""
        query = f"attributes.status = 'FINISHED' and tags.target = '{target}' and tags.digest = '{digest}'"
        runs = self.client.search_runs([self.experiment], query, max_results=1, order_by=["start_time DESC"])
        return str(runs[0].info.run_id) if runs else None

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Log nested settings with dotted names."""
        flat = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in _flat(params)]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run, params=flat[start : start + 100])

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set several tags at once."""
        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def _sweep(self) -> None:
        """Mark runs as killed whose process on this machine no longer exists."""
        for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'"):
            if provenance.gone(run.data.tags, run.info.start_time / 1000, local=self.uri.startswith("sqlite:")):
                self.client.set_terminated(run.info.run_id, "KILLED")


@dataclass
class Curves:
    """Buffers a running stage's metrics and sends them in batches, so that steps need no round trip."""

    store: Store
    run: str
    pending: list[Metric] = field(default_factory=list)
    last_step: dict[str, int] = field(default_factory=dict)
    sent_at: float = field(default_factory=time.monotonic)
    reported_ms: int = 0

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Report ``metrics`` measured at ``step``; by default, at each metric's last step."""
        # Of two values at one step MLflow shows the later one, so timestamps must be unique.
        now = self.reported_ms = max(int(time.time() * 1000), self.reported_ms + 1)
        for name, value in metrics.items():
            metric_step = self.last_step.get(name, 0) if step is None else step
            self.last_step[name] = max(metric_step, self.last_step.get(name, 0))
            self.pending.append(Metric(name, float(value), now, metric_step))
        if len(self.pending) >= _LARGEST_BATCH or time.monotonic() - self.sent_at > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send all pending metrics."""
        while self.pending:
            self.store.client.log_batch(self.run, metrics=self.pending[:_LARGEST_BATCH])
            del self.pending[:_LARGEST_BATCH]
        self.sent_at = time.monotonic()


def run_tracked(stage: Stage, params: Mapping[str, Any], keys: Keys) -> Card:
    """Run one repetition of a stage inside its MLflow run, after recording everything it depends on.

    Raises:
        InputError: An input or a section of params.yaml is invalid.
    """
    config = stage.config(params, keys)
    with process.starting():  # MLflow imports the store's backend
        store = Store.open()
    for dep, dep_keys in stage.upstream(params, keys):
        record(store, dep, params, dep_keys)
    run = store.start(stage.target(keys), _identity(stage, keys))
    curves = Curves(store, run)
    with _closing(curves), system_metrics(store.uri, run):
        store.log_params(run, _parameters(config, keys))
        log_dataset(store.client, run, stage, params, keys, stage.parents(keys))
        card = stage(config, keys, curves)
        _log_result(store, run, stage.path(keys), card, curves)
    return card


def record(store: Store, stage: Stage, params: Mapping[str, Any], keys: Keys) -> str | None:
    """Find the run of a finished artifact, or create one from its card and metrics.

    Returns:
        The run's id, or None if there is no finished artifact.
    """
    directory = stage.path(keys)
    if not (directory / CARD).is_file():
        return None
    card = Card.read(directory)
    existing = store.find(stage.target(keys), card.digest)
    if existing:
        return existing
    run = store.start(stage.target(keys), _identity(stage, keys) | {"origin": "cache"})
    with _closing(curves := Curves(store, run)):
        store.log_params(run, _parameters(stage.config(params, keys), keys))
        log_dataset(store.client, run, stage, params, keys, card.parents)
        _log_result(store, run, directory, card, curves)
    return run


def _parameters(config: Config | None, keys: Keys) -> dict[str, Any]:
    """What a run logs as its parameters: the resolved section, if it is not null, and the keys."""
    return {**keys, **(config.model_dump(mode="json") if config else {})}


def record_all(stages: Sequence[Stage], params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Ensure that every finished artifact has a run; returns pairs of target and run id."""
    store = Store.open()
    runs = [(s.target(keys), record(store, s, params, keys)) for s in stages for keys in s.repetitions(params)]
    return [(target, run) for target, run in runs if run]


@contextmanager
def tracked(name: str, params: Mapping[str, Any]) -> Iterator[Curves]:
    """Track a command that is not a stage in a new run; yields its metrics logger."""
    store = Store.open()
    with running(store, name, {"stage": name}) as curves:
        store.log_params(curves.run, params)
        yield curves


@contextmanager
def running(store: Store, name: str, tags: Mapping[str, str]) -> Iterator[Curves]:
    """Start a run in an open store and end it with the context; yields its metrics logger."""
    curves = Curves(store, store.start(name, tags))
    with _closing(curves), system_metrics(store.uri, curves.run):
        yield curves


@contextmanager
def parent_run(name: str) -> Iterator["Parent"]:
    """Start the parent run of all stages. Logs params.yaml and dvc.yaml at its start, dvc.lock at its end."""
    store = Store.open()
    with running(store, name, {"stage": name}) as curves:
        _log_files(curves, PARAMS, Path("dvc.yaml"))
        try:
            yield Parent(store, curves.run)
        except BaseException:
            with suppress(MlflowException, OSError):  # a failing store must not hide why the flow failed
                _log_files(curves, DVC_LOCK)
            raise
        _log_files(curves, DVC_LOCK)


@dataclass(frozen=True)
class Parent:
    """The parent run of a whole pipeline."""

    store: Store
    run: str

    def adopt(self, stage: Stage, params: Mapping[str, Any], keys: Keys) -> None:
        """Link the run that made a stage's artifact and copy its metrics to the parent."""
        run = record(self.store, stage, params, keys)
        if run is None:
            return
        name = Path(stage.name, *(keys[key] for key in stage.matrix)).as_posix()
        self.store.set_tags(self.run, {f"run/{name}": run})
        curves = Curves(self.store, self.run)
        curves({f"{name}/{metric}": value for metric, value in read_metrics(stage.path(keys)).items()})
        curves.flush()


@contextmanager
def _closing(curves: Curves) -> Iterator[None]:
    """Flush metrics and end the run with a status that reflects how the body ended."""
    end = curves.store.client.set_terminated
    try:
        yield
        curves.flush()
    except BaseException as error:
        # A failing store must not hide why the stage failed.
        with suppress(MlflowException, OSError):
            curves.flush()
        with suppress(MlflowException, OSError):
            end(curves.run, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    end(curves.run, "FINISHED")


def _log_result(store: Store, run: str, directory: Path, card: Card, curves: Curves) -> None:
    """Log a finished artifact's metrics, card, lineage, and small files."""
    curves(read_metrics(directory))
    curves.flush()
    for path in sorted(directory.iterdir()):
        logged = path.name in (CARD, METRICS) or card.kind == "comparison"
        if path.is_file() and logged and (path.stat().st_size <= _LARGEST_FILE or path.suffix == ".html"):
            store.client.log_artifact(run, str(path))
    if card.kind == "comparison":
        log_comparison(store.client, run, directory)
    store.set_tags(run, {f"parent/{name}": digest for name, digest in card.parents.items()} | {"digest": card.digest})
    if card.refusal:
        store.set_tags(run, {f"refusal.{name}": str(value) for name, value in card.refusal if value is not None})


def _log_files(curves: Curves, *paths: Path) -> None:
    """Log the files that exist."""
    for path in filter(Path.is_file, paths):
        curves.store.client.log_artifact(curves.run, str(path))


def _experiment(uri: str) -> str:
    """Id of the experiment, created if missing; another process may create it concurrently."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            return str(client.create_experiment(EXPERIMENT))
        except MlflowException:
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _identity(stage: Stage, keys: Keys) -> dict[str, str]:
    return {"stage": stage.name, "target": stage.target(keys), **keys}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
