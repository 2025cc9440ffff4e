"""What must hold after every disturbance, and after the run that follows it."""

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from pipeline.core.artifact import CARD, digest
from pipeline.core.dvc_files import complete_part


@dataclass(frozen=True)
class Result:
    """What a release leaves: the entries of dvc.lock, and the digests of its artifacts."""

    lock: dict[str, object]
    digests: dict[str, str]

    @classmethod
    def of(cls, root: Path) -> "Result":
        """Read the results of a checkout."""
        lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
        cards = sorted((root / "artifacts").rglob(CARD))
        return cls(lock, {str(c.parent.relative_to(root)): json.loads(c.read_text())["digest"] for c in cards})

    def differences(self, root: Path) -> list[str]:
        """How the results of a checkout differ from these; the files of each artifact are hashed."""
        other = Result.of(root)
        faults = [f"{name}: entry of dvc.lock" for name in _unequal(self.lock, other.lock)]
        faults += [f"{name}: digest" for name in _unequal(self.digests, other.digests)]
        return faults + [
            f"{name}: files are damaged" for name, value in other.digests.items() if digest(root / name) != value
        ]


def _unequal(one: dict, other: dict) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


@dataclass
class Progress:
    """Work that a disturbed release has finished, none of which may be lost later."""

    stages: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)
    """Completed training steps, by checkpoint file."""
    blocks: int = 0
    """Complete files of embeddings."""
    cut_off: bool = False
    """Whether DVC was killed while it wrote dvc.lock."""

    @classmethod
    def of(cls, root: Path) -> "Progress":
        """Read the progress of a checkout."""
        stages = (yaml.safe_load(complete_part(_lock(root)) or "") or {}).get("stages", {})
        steps = {}
        for path in (root / ".checkpoints").glob("*.pt"):
            steps[path.name] = int(torch.load(path, map_location="cpu", weights_only=True)["done"])
        return cls(set(stages), steps, len(list((root / ".store").rglob("*.json"))), is_cut_off(root))

    def losses(self, later: "Progress") -> list[str]:
        """What was there before and is not there later. Entries of dvc.lock count only if the file is whole."""
        if later.cut_off:
            later.stages |= self.stages  # they come back from DVC's run cache
        lost = [f"{stage} is no longer in dvc.lock" for stage in sorted(self.stages - later.stages)]
        lost += [f"{self.blocks - later.blocks} files of embeddings"] if later.blocks < self.blocks else []
        for name, done in self.steps.items():
            if name not in later.steps:
                finished = any(stage.replace("@", "-") == name.rpartition("-")[0] for stage in later.stages)
                lost += [] if finished else [f"checkpoint {name}, but its stage is not finished"]
            elif later.steps[name] < done:
                lost.append(f"checkpoint {name} went back from step {done} to {later.steps[name]}")
        return lost


def faults(root: Path) -> list[str]:
    """What is broken in a checkout after a disturbance: dvc.lock, mlflow.db, artifacts."""
    found = []
    if complete_part(_lock(root)) is None:
        found.append("dvc.lock is broken")
    for database in (root / "mlflow.db", root / ".prefect/prefect.db"):
        if database.exists() and (answer := integrity(database)) != "ok":
            found.append(f"{database.name}: {answer}")
    for card in (root / "artifacts").rglob(CARD):
        if json.loads(card.read_text())["digest"] != digest(card.parent):
            found.append(f"{card.parent.relative_to(root)} has a card, but other files")
    return found


def is_cut_off(root: Path) -> bool:
    """Whether DVC was killed while it wrote dvc.lock, which the next flow repairs."""
    return complete_part(_lock(root)) != _lock(root)


def _lock(root: Path) -> str:
    path = root / "dvc.lock"
    return path.read_text() if path.exists() else ""


def integrity(database: Path) -> str:
    """Answer of SQLite's own check."""
    connection = sqlite3.connect(database)
    try:
        return "; ".join(str(row[0]) for row in connection.execute("PRAGMA integrity_check"))
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()


def unfinished(root: Path, targets: set[str]) -> list[str]:
    """After a finished release: targets without a finished run in mlflow.db, and runs that still run."""
    connection = sqlite3.connect(root / "mlflow.db")
    try:
        query = "SELECT r.status, t.value FROM runs r LEFT JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'target'"
        runs = connection.execute(query).fetchall()
    finally:
        connection.close()
    missing = targets - {target for status, target in runs if status == "FINISHED"}
    return [f"{target} has no finished run in MLflow" for target in sorted(missing)] + [
        f"a run of {target or 'a release'} is still RUNNING in MLflow" for status, target in runs if status == "RUNNING"
    ]
