"""SIGKILL at random moments of `register`, `promote` and `rollback`, each of which is then repeated."""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.core.artifact import CARD, digest
from tests.chaos.checkout import DamageError, Reference, check_sound, finish, remove
from tests.chaos.processes import Command

_MODEL = "sam-distillery"


def registry_kills(reference: Reference, seed: int, rounds: int) -> Iterator[str]:
    """Kill each command once per round; repeated, they must leave the registry as undisturbed ones do.

    Yields:
        A line per round.

    Raises:
        DamageError: The registry is broken, or not as without the kill.
        HangError: A command did not end.
    """
    for number in range(rounds):
        generator = random.Random(f"{seed} registry {number}")
        root = reference.copy(f"registry-{number}")
        _prefer(root, "fp32")
        start = time.monotonic()
        finish(root, ("pipeline", "register"))
        seconds = time.monotonic() - start
        finish(root, ("pipeline", "promote"))
        _expect(root, 1, champion="1", challenger="1")
        _prefer(root, "int8")
        delays = [_disturb(root, "register", seconds, generator)]
        _expect(root, 2, champion="1", challenger="2")
        delays.append(_disturb(root, "promote", seconds, generator))
        _expect(root, 2, champion="2", challenger="2")
        delays.append(_disturb(root, "rollback", seconds, generator))
        _expect(root, 2, champion="1", challenger="2")
        remove(root)
        yield "register, promote, rollback killed after " + ", ".join(f"{delay:.1f} s" for delay in delays)


def _disturb(root: Path, verb: str, seconds: float, generator: random.Random) -> float:
    """Kill a command at a random moment and repeat it; returns the moment."""
    delay = generator.uniform(0, seconds)
    command = Command(root, ("pipeline", verb))
    if command.runs_for(delay):
        command.kill()
    check_sound(root)
    # A rollback that was done before the kill is not repeated: there would be no earlier champion.
    if verb != "rollback" or _aliases(root).get("champion") != "1":
        finish(root, ("pipeline", verb))
    return delay


def _prefer(root: Path, precision: str) -> None:
    """Make one of the two students the leaderboard's best."""
    path = root / "artifacts/compare/leaderboard.json"
    rows = json.loads(path.read_text())
    for row in rows:
        if row["role"] == "student":
            row["latency_ms"] = 5.0 if row["precision"] == precision else 9.0
    path.write_text(json.dumps(rows))
    card = json.loads((path.parent / CARD).read_text()) | {"digest": digest(path.parent)}
    (path.parent / CARD).write_text(json.dumps(card))


def _client(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")


def _aliases(root: Path) -> dict[str, str]:
    try:
        aliases = _client(root).get_registered_model(_MODEL).aliases
    except MlflowException:
        return {}
    return {alias: str(version) for alias, version in aliases.items()}


def _expect(root: Path, versions: int, **aliases: str) -> None:
    """Check the registry.

    Raises:
        DamageError: It has other versions or aliases.
    """
    actual = {alias: version for alias, version in _aliases(root).items() if alias in aliases}
    if actual != aliases:
        raise DamageError(f"the registry's aliases are {actual}, not {aliases}")
    digests = Counter(v.tags.get("digest") for v in _client(root).search_model_versions(f"name = '{_MODEL}'"))
    if len(digests) != versions or digests.total() != versions or None in digests:
        raise DamageError(f"the registry has versions of digests {dict(digests)}, expected {versions} different ones")
