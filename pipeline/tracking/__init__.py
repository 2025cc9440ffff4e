"""What MLflow remembers of stages: one run per repetition, found again by the digest of what it made.

With `pipeline.promote` the only module that knows MLflow. Runs go to ``MLFLOW_TRACKING_URI``, or to ``mlflow.db`` in
the repository. A stage that DVC restored from its cache did not run, so it has no run in a new database; then one is
written from its card and metrics, with the tag ``origin: cache``.
"""

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
from pipeline.core.config import PARAMS
from pipeline.core.errors import InputError
from pipeline.core.stage import DVC_LOCK, Keys, Stage
from pipeline.tracking import database
from pipeline.tracking.comparison import log_comparison
from pipeline.tracking.inputs import log_dataset
from pipeline.tracking.system import system_metrics

EXPERIMENT = "sam-distillery"
PARENT_RUN = "PIPELINE_PARENT_RUN"
"""Environment variable: the run that stages become children of. Ours, as MLflow would resume its own."""
FLUSH_EVERY_S = 2.0
_LONGEST_VALUE = 6000
_LARGEST_BATCH = 500
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Store:
    """An open MLflow store and the experiment in it that all runs belong to."""

    client: MlflowClient
    experiment: str
    uri: str

    @classmethod
    def open(cls) -> "Store":
        """Open the store, make database and experiment where they are missing, and close runs of dead processes.

        Raises:
            InputError: The store cannot be reached.
        """
        uri = database.anchored(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
        try:
            database.create_if_missing(uri, _experiment)
            experiment = _experiment(uri)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, PermissionError, FileNotFoundError, NotADirectoryError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"MLflow at {uri} cannot be used: {reason}. Start it, or unset MLFLOW_TRACKING_URI to use mlflow.db."
            ) from error
        store = cls(client, experiment, uri)
        store._sweep()
        return store

    def start(self, name: str, tags: Mapping[str, str]) -> str:
        """Start a run under the current parent run and return its id."""
        parent = os.environ.get(PARENT_RUN)
        about = {
            **provenance.git(),
            **provenance.host(),
            "pid": str(os.getpid()),
            "mlflow.source.name": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:250],
            "mlflow.source.type": "LOCAL",
            **({"mlflow.parentRunId": parent} if parent else {}),
            **tags,
        }
        return str(self.client.create_run(self.experiment, run_name=name, tags=about).info.run_id)

    def find(self, target: str, digest: str) -> str | None:
        """The latest finished run that made ``target`` with this ``digest``."""
        wanted = f"attributes.status = 'FINISHED' and tags.target = '{target}' and tags.digest = '{digest}'"
        runs = self.client.search_runs([self.experiment], wanted, max_results=1, order_by=["start_time DESC"])
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
        """Close runs that say they run although their process, one of this machine, is gone: it was killed."""
        for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'"):
            if provenance.gone(run.data.tags, run.info.start_time / 1000, local=self.uri.startswith("sqlite:")):
                self.client.set_terminated(run.info.run_id, "KILLED")


@dataclass
class Curves:
    """Collects the metrics of a running stage and sends them in batches, so that a step costs no round trip."""

    store: Store
    run: str
    waiting: list[Metric] = field(default_factory=list)
    last_step: dict[str, int] = field(default_factory=dict)
    sent_at: float = field(default_factory=time.monotonic)
    reported_ms: int = 0

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Report ``metrics`` measured at ``step``; without a step, at the last one each was reported at."""
        # Of two values at one step MLflow shows the later one, so no two reports may have the same millisecond.
        now = self.reported_ms = max(int(time.time() * 1000), self.reported_ms + 1)
        for name, value in metrics.items():
            at = self.last_step.get(name, 0) if step is None else step
            self.last_step[name] = max(at, self.last_step.get(name, 0))
            self.waiting.append(Metric(name, float(value), now, at))
        if len(self.waiting) >= _LARGEST_BATCH or time.monotonic() - self.sent_at > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        while self.waiting:
            self.store.client.log_batch(self.run, metrics=self.waiting[:_LARGEST_BATCH])
            del self.waiting[:_LARGEST_BATCH]
        self.sent_at = time.monotonic()


def run_tracked(stage: Stage, params: Mapping[str, Any], keys: Keys) -> Card:
    """Run one repetition of a stage inside its MLflow run; everything it builds on is recorded first.

    Raises:
        InputError: An input or a section of params.yaml is wrong.
    """
    config = stage.config(params, keys)
    with process.starting():  # MLflow imports the kind of store that the address asks for
        store = Store.open()
    for dep, need_keys in stage.upstream(params, keys):
        record(store, dep, params, need_keys)
    run = store.start(stage.target(keys), _identity(stage, keys))
    curves = Curves(store, run)
    with _closing(curves), system_metrics(store.uri, run):
        store.log_params(run, {**keys, **config.model_dump(mode="json")})
        log_dataset(store.client, run, stage, params, keys, stage.parents(keys))
        card = stage(config, keys, curves)
        _log_result(store, run, stage.path(keys), card, curves)
    return card


def record(store: Store, stage: Stage, params: Mapping[str, Any], keys: Keys) -> str | None:
    """The finished run of the artifact in place; made from its card and metrics where the store has none.

    Returns:
        The run's id, or None where no finished artifact is in place.
    """
    place = stage.path(keys)
    if not (place / CARD).is_file():
        return None
    card = Card.read(place)
    found = store.find(stage.target(keys), card.digest)
    if found:
        return found
    run = store.start(stage.target(keys), _identity(stage, keys) | {"origin": "cache"})
    with _closing(curves := Curves(store, run)):
        store.log_params(run, {**keys, **stage.config(params, keys).model_dump(mode="json")})
        log_dataset(store.client, run, stage, params, keys, card.parents)
        _log_result(store, run, place, card, curves)
    return run


def record_all(stages: Sequence[Stage], params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Make sure that every artifact in place has its run; pairs of target and run id."""
    store = Store.open()
    runs = [(s.target(keys), record(store, s, params, keys)) for s in stages for keys in s.repetitions(params)]
    return [(target, run) for target, run in runs if run]


@contextmanager
def tracked(name: str, params: Mapping[str, Any]) -> Iterator[Curves]:
    """A run of an act that is no stage; gives what logs its metrics."""
    store = Store.open()
    with running(store, name, {"stage": name}) as curves:
        store.log_params(curves.run, params)
        yield curves


@contextmanager
def running(store: Store, name: str, tags: Mapping[str, str]) -> Iterator[Curves]:
    """A run in an open store, ended as its body ends; gives what logs its metrics."""
    curves = Curves(store, store.start(name, tags))
    with _closing(curves), system_metrics(store.uri, curves.run):
        yield curves


@contextmanager
def parent_run(name: str) -> Iterator["Parent"]:
    """A run that holds the runs of all stages, with params.yaml and dvc.yaml from its start.

    It gets the dvc.lock they led to at its end, however it ends.
    """
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
    """The run over a whole pipeline."""

    store: Store
    run: str

    def adopt(self, stage: Stage, params: Mapping[str, Any], keys: Keys) -> None:
        """Name the run that made the artifact in place, whenever that was, and copy its metrics here."""
        run = record(self.store, stage, params, keys)
        if run is None:
            return
        place = Path(stage.name, *(keys[key] for key in stage.matrix)).as_posix()
        self.store.set_tags(self.run, {f"run/{place}": run})
        copied = Curves(self.store, self.run)
        copied({f"{place}/{name}": value for name, value in read_metrics(stage.path(keys)).items()})
        copied.flush()


@contextmanager
def _closing(curves: Curves) -> Iterator[None]:
    """Send what waits and end the run, with the status that tells how its body ended."""
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


def _log_result(store: Store, run: str, place: Path, card: Card, curves: Curves) -> None:
    """What a finished artifact says of itself: metrics, card, lineage, and small files that people open."""
    curves(read_metrics(place))
    curves.flush()
    for path in sorted(place.iterdir()):
        shown = path.name in (CARD, METRICS) or card.kind == "comparison"
        if path.is_file() and shown and (path.stat().st_size <= _LARGEST_FILE or path.suffix == ".html"):
            store.client.log_artifact(run, str(path))
    if card.kind == "comparison":
        log_comparison(store.client, run, place)
    store.set_tags(run, {f"parent/{name}": digest for name, digest in card.parents.items()} | {"digest": card.digest})
    if card.refusal:
        store.set_tags(run, {f"refusal.{name}": str(value) for name, value in card.refusal if value is not None})


def _log_files(curves: Curves, *paths: Path) -> None:
    """Those of the files that there are."""
    for path in filter(Path.is_file, paths):
        curves.store.client.log_artifact(curves.run, str(path))


def _experiment(uri: str) -> str:
    """The id of our experiment, made where it is missing; another process may make it at the same moment."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return str(client.create_experiment(EXPERIMENT))
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return str(found.experiment_id)


def _identity(stage: Stage, keys: Keys) -> dict[str, str]:
    return {"stage": stage.name, "target": stage.target(keys), **keys}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
