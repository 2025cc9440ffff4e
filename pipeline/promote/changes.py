"""Changes of champions in MLflow's registry, each complete or undone whenever its process is killed.

Per target there are the aliases ``champion-cpu``, ``challenger-cpu``, ``previous-cpu`` (and ``-gpu``). The plain
aliases ``champion`` and ``previous`` follow the target that ``champion`` is of; the first champion decides it.

A change is written to a tag of the registered model, then ``champion-<target>`` moves, which decides it, then the other
aliases follow and the tag is deleted. `settle`, with which every command starts, completes a change whose deciding
alias has moved, and drops one whose has not.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.ops.gate import Target, target_of
from pipeline.promote import registry
from pipeline.promote.registry import CHALLENGER, CHAMPION, PREVIOUS, version_of

PENDING = "pending-change"
"""Tag of the registered model: the change in progress."""
RUNTIME = "runtime"
"""Tag of a version: the runtime of its engine."""
OUTCOME = "outcome"
"""Tag of a run: what came of a promotion or a rollback."""


@dataclass(frozen=True)
class Change:
    """A change of a target's champion."""

    action: Literal["promote", "rollback"]
    target: Target
    old: str | None
    """Version that is champion before; None for none."""
    new: str
    previous: str | None
    """Version that is ``previous`` afterwards; None for none."""
    run: str
    """Id of the MLflow run that records the change."""


def alias(name: str, target: Target) -> str:
    """A target's alias: ``champion-cpu``."""
    return f"{name}-{target}"


def target_of_version(version: ModelVersion) -> Target:
    """The target of a registered version; those of earlier releases have no tag, and were for processors."""
    return target_of(version.tags.get(RUNTIME))


def champion_of(client: MlflowClient, name: str, target: Target) -> ModelVersion | None:
    """The champion of a target; call `settle` before."""
    return version_of(client, name, alias(CHAMPION, target))


def set_challenger(client: MlflowClient, name: str, version: str) -> None:
    """Give a version the aliases ``challenger`` and ``challenger-<target>``."""
    target = target_of_version(client.get_model_version(name, version))
    client.set_registered_model_alias(name, alias(CHALLENGER, target), version)
    client.set_registered_model_alias(name, CHALLENGER, version)


def make(client: MlflowClient, name: str, change: Change) -> None:
    """Make a change; call it only with the model's lock.

    Raises:
        InputError: Another machine moved the champion meanwhile; nothing is changed then.
        MlflowException: The store cannot be reached, or rejects a request.
    """
    champion, plain = alias(CHAMPION, change.target), version_of(client, name, CHAMPION)
    follows = _follows(client, name, change.target)
    if follows:
        registry.expect(client, name, CHAMPION, change.old)
    registry.expect(client, name, champion, change.old)
    client.set_registered_model_tag(name, PENDING, json.dumps(asdict(change), sort_keys=True))
    if change.action == "promote" and change.old is not None:
        client.set_model_version_tag(name, change.new, PREVIOUS, change.old)
    registry.move(client, name, champion, change.old, change.new)
    _complete(client, name, change, follows, str(plain.version) if plain else None)


def settle(client: MlflowClient, name: str) -> Change | None:
    """Complete or drop a change whose process was killed; call it only with the model's lock.

    Without one, ``champion-<target>`` takes the version of ``champion``, which earlier releases and people set alone.

    Returns:
        The change, if there was one and it is complete now.
    """
    try:
        tag = client.get_registered_model(name).tags.get(PENDING)
        change = Change(**json.loads(tag)) if tag else None
    except MlflowException as error:
        if registry.is_missing(error):
            return None
        raise
    except (ValueError, TypeError):  # of another version of this program
        client.delete_registered_model_tag(name, PENDING)
        return None
    if change is None:
        _adopt(client, name)
        return None
    current = version_of(client, name, alias(CHAMPION, change.target))
    if current is not None and str(current.version) == change.new:
        plain = version_of(client, name, CHAMPION)
        follows = plain is None or target_of_version(plain) == change.target
        _complete(client, name, change, follows, str(plain.version) if plain else None)
        return change
    _outcome(client, change, "interrupted")
    client.delete_registered_model_tag(name, PENDING)
    return None


def _adopt(client: MlflowClient, name: str) -> None:
    """Let the alias of its target follow ``champion``."""
    plain = version_of(client, name, CHAMPION)
    if plain is not None:
        champion = alias(CHAMPION, target_of_version(plain))
        current = version_of(client, name, champion)
        if current is None or current.version != plain.version:
            client.set_registered_model_alias(name, champion, str(plain.version))


def _follows(client: MlflowClient, name: str, target: Target) -> bool:
    """Whether the plain alias ``champion`` is of this target, or of none."""
    plain = version_of(client, name, CHAMPION)
    return plain is None or target_of_version(plain) == target


def _complete(client: MlflowClient, name: str, change: Change, follows: bool, plain: str | None) -> None:
    """What follows once ``champion-<target>`` has moved; may be repeated."""
    if follows and plain != change.new:
        registry.move(client, name, CHAMPION, plain, change.new)
    for previous in (alias(PREVIOUS, change.target), *([PREVIOUS] if follows else [])):
        if change.previous:
            client.set_registered_model_alias(name, previous, change.previous)
        elif version_of(client, name, previous) is not None:
            client.delete_registered_model_alias(name, previous)
    if change.action == "rollback" and change.old is not None:
        with contextlib.suppress(MlflowException):  # a leftover is overwritten when the version is promoted again
            client.delete_model_version_tag(name, change.old, PREVIOUS)
    _outcome(client, change, "promoted" if change.action == "promote" else "rolled back")
    client.delete_registered_model_tag(name, PENDING)


def _outcome(client: MlflowClient, change: Change, outcome: str) -> None:
    with contextlib.suppress(MlflowException):  # the run may have been deleted
        client.set_tag(change.run, OUTCOME, outcome)
