"""Promotion of a challenger and rollback of a champion, with their history."""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.core.artifact import file_sha256
from pipeline.core.config import read_params, section
from pipeline.core.errors import GateError, InputError
from pipeline.ops.gate import PromoteConfig, Target
from pipeline.promote import changes, registry, verdict
from pipeline.promote.changes import OUTCOME, RUNTIME, Change, alias, champion_of, target_of_version
from pipeline.promote.gate import Measured, Verdict, judge
from pipeline.promote.instances import Instances
from pipeline.promote.registry import CHALLENGER, PREVIOUS, version_of
from pipeline.tracking import Store, running

INSTANCES = "instances"
"""Tag of a version: digest of its results per instance, and folder of the run with the files."""
_ACTIONS = ("promote", "rollback")


@dataclass(frozen=True)
class Decision:
    """What came of a promotion or a rollback."""

    line: str
    """A one-line summary."""
    verdict: Verdict | None = None
    """None if nothing was to be decided."""
    refused: bool = False
    changed: Change | None = None
    """The change of the champion that was made."""
    model: str = ""


def open_store() -> tuple[PromoteConfig, Store]:
    """Section ``promote`` of params.yaml, and the store."""
    return section(read_params(), "promote", PromoteConfig), Store.open()


def promote(*, dry_run: bool = False, force: str | None = None, target: Target | None = None) -> str:
    """Make the challenger champion if it passes the gate; the old champion gets the alias ``previous``.

    Args:
        dry_run: Only judge; change and record nothing.
        force: Why the challenger becomes champion even if rules do not hold; recorded.
        target: Of which target; None for the latest challenger.

    Returns:
        A one-line summary.

    Raises:
        GateError: A rule does not hold; the champion stays.
        InputError: There is no challenger, another machine moved the champion meanwhile, or MLflow cannot be reached.
    """
    decision = decide(dry_run=dry_run, force=force, target=target)
    if decision.refused:
        raise GateError(decision.line)
    return decision.line


def decide(*, dry_run: bool = False, force: str | None = None, target: Target | None = None) -> Decision:
    """Like `promote`, but a refusal is returned, with the verdict."""
    if force is not None and not force.strip():
        raise InputError("--force needs a reason, which is recorded: --force 'the old data had wrong labels'.")
    config, store = open_store()
    name = config.registered_model
    with registry.exclusive(store.uri, name):
        changes.settle(store.client, name)
        challenger = version_of(store.client, name, alias(CHALLENGER, target) if target else CHALLENGER)
        if challenger is None:
            of = f" for target {target}" if target else ""
            raise InputError(f"{name} has no version with alias {CHALLENGER}{of}: run `python -m pipeline register`.")
        champion = champion_of(store.client, name, target_of_version(challenger))
        if champion is not None and champion.version == challenger.version:
            return Decision(f"{name} version {champion.version} is already champion", model=name)
        against = None if champion is None or config.champion is None else _measured(store.client, champion)
        result = judge(config, _measured(store.client, challenger), against)
        if dry_run:
            return _dry(name, challenger, result)
        return _act(store, name, challenger, champion, result, force)


def rollback(*, target: Target | None = None, reason: str = "") -> str:
    """Make the champion's predecessor champion again.

    Args:
        target: Of which target; None for that of the alias ``champion``.
        reason: Recorded.

    Returns:
        A one-line summary.

    Raises:
        InputError: There is no champion or no predecessor, another machine moved the champion meanwhile, or MLflow
            cannot be reached.
    """
    return go_back(target=target, reason=reason).line


def go_back(*, target: Target | None = None, reason: str = "") -> Decision:
    """Like `rollback`, with the change."""
    config, store = open_store()
    name, client = config.registered_model, store.client
    with registry.exclusive(store.uri, name):
        settled = changes.settle(client, name)
        if settled is not None and settled.action == "rollback" and target in (None, settled.target):
            line = f"{name} version {settled.new} is champion again: an interrupted rollback is complete"
            return Decision(line, changed=settled, model=name)
        champion = version_of(client, name, registry.CHAMPION) if target is None else champion_of(client, name, target)
        if champion is None:
            of = f" for target {target}" if target else ""
            raise InputError(f"{name} has no champion{of}: run `python -m pipeline promote`.")
        previous = champion.tags.get(PREVIOUS)
        if previous is None:
            raise InputError(f"{name} version {champion.version} is the first champion: there is none to go back to.")
        again = client.get_model_version(name, previous)
        of = target_of_version(champion)
        with running(store, "rollback", _tags("rollback", name, again, champion) | {"reason": reason}) as curves:
            change = Change("rollback", of, str(champion.version), previous, again.tags.get(PREVIOUS), curves.run)
            changes.make(client, name, change)
    line = f"{name} version {previous} is champion again, replacing version {champion.version}"
    return Decision(line, changed=change, model=name)


def history() -> list[dict[str, str]]:
    """Promotions and rollbacks of the registered model, the latest first.

    Returns:
        Per attempt ``time`` (local, ISO 8601), ``action``, ``version``, ``replaced``, ``target``, ``outcome``,
        ``reason``, ``by`` and ``run``.

    Raises:
        InputError: MLflow cannot be reached.
    """
    config, store = open_store()
    with registry.exclusive(store.uri, config.registered_model):
        changes.settle(store.client, config.registered_model)
        found = [
            run
            for action in _ACTIONS
            for run in store.client.search_runs(
                [store.experiment],
                f"tags.stage = '{action}' and tags.registered_model = '{config.registered_model}'",
                order_by=["start_time DESC"],
            )
        ]
    found.sort(key=lambda run: -run.info.start_time)
    return [_entry(run.data.tags, run.info) for run in found]


def _entry(tags: Mapping[str, str], info: Any) -> dict[str, str]:
    started = datetime.fromtimestamp(info.start_time / 1000).astimezone()
    return {
        "time": started.isoformat(timespec="seconds"),
        "action": tags["stage"],
        "version": tags.get("version", ""),
        "replaced": tags.get("replaced", ""),
        "target": tags.get("target", ""),
        "outcome": tags.get(OUTCOME, "interrupted"),
        "reason": tags.get("forced") or tags.get("reason") or "",
        "by": tags.get("by", ""),
        "run": str(info.run_id),
    }


def _dry(name: str, challenger: ModelVersion, result: Verdict) -> Decision:
    if result.passed:
        return Decision(f"{name} version {challenger.version} passes the gate; nothing was changed", result, model=name)
    line = f"{name} version {challenger.version} does not pass the gate: {result.failures}; nothing was changed."
    return Decision(line, result, refused=True, model=name)


def _act(
    store: Store,
    name: str,
    challenger: ModelVersion,
    champion: ModelVersion | None,
    result: Verdict,
    force: str | None,
) -> Decision:
    """Record the verdict, and make the challenger champion if it passed or is forced."""
    forced = force is not None and not result.passed
    tags = _tags("promote", name, challenger, champion) | {"passed": str(result.passed).lower()}
    tags |= {"forced": str(force)} if forced else {}
    tags |= {} if result.passed or forced else {OUTCOME: "refused"}
    version, old = str(challenger.version), None if champion is None else str(champion.version)
    change = None
    with running(store, "promote", tags) as curves:
        store.client.log_dict(curves.run, verdict.record(result, name), "gate.json")
        store.client.log_text(curves.run, verdict.text(result) + "\n", "gate.txt")
        curves(verdict.metrics(result))
        store.set_tags(curves.run, {f"gate/{rule.name}": "passed" if rule.holds else "failed" for rule in result.rules})
        if result.passed or forced:
            change = Change("promote", target_of_version(challenger), old, version, old, curves.run)
            changes.make(store.client, name, change)
    if change is None:
        stays = f"version {old} stays champion" if old else "there is no champion yet"
        line = f"{name} version {version} does not pass the gate: {result.failures}; {stays}."
        return Decision(line, result, refused=True, model=name)
    line = f"{name} version {version} is champion" + (f", replacing version {old}" if old else "")
    if forced:
        line += f" (forced: {force}; did not hold: {result.failures})"
    return Decision(line, result, changed=change, model=name)


def _tags(action: str, name: str, version: ModelVersion, replaced: ModelVersion | None) -> dict[str, str]:
    """Tags of a run that records a change."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return {
        "stage": action,
        "registered_model": name,
        "version": str(version.version),
        "replaced": str(replaced.version) if replaced else "",
        "target": target_of_version(version),
        "digest": version.tags.get("digest", ""),
        "by": user,
    }


def _measured(client: MlflowClient, version: ModelVersion) -> Measured:
    """What the gate needs of a registered version."""
    numbers = client.get_run(str(version.run_id)).data.metrics
    return Measured(
        version=str(version.version),
        metrics={name: value for name, value in numbers.items() if not name.startswith("teacher_")},
        teacher={name.removeprefix("teacher_"): v for name, v in numbers.items() if name.startswith("teacher_")},
        runtime=version.tags.get(RUNTIME, ""),
        precision=version.tags.get("precision", "fp32"),
        processor=version.tags.get("processor", ""),
        latency_error_ms=numbers.get("latency_error_ms"),
        instances=_instances(client, version),
    )


def _instances(client: MlflowClient, version: ModelVersion) -> Instances | None:
    """A version's results per instance; None for versions of earlier releases.

    Raises:
        InputError: The file is missing or not that of the version's tag.
    """
    digest = version.tags.get(INSTANCES)
    if digest is None:
        return None
    with TemporaryDirectory() as directory:
        try:
            with registry.silenced():
                file = client.download_artifacts(str(version.run_id), f"{INSTANCES}/{digest}.parquet", directory)
        except (MlflowException, OSError) as error:
            raise InputError(
                f"{version.name} version {version.version}: results per instance cannot be downloaded: "
                f"{str(error).splitlines()[0]}. Register the version again."
            ) from error
        if file_sha256(path := Path(file)) != digest:
            raise InputError(
                f"{version.name} version {version.version}: results per instance are damaged. Register it again."
            )
        return Instances.read(path)
