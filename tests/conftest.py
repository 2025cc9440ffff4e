"""A repository of its own for each test: the real frame around stand-in verbs, with real DVC, MLflow and Prefect."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROOT = Path(__file__).parents[1]
# Prefect reads its settings when it is imported, which collecting the tests of the flows does.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.update(DO_NOT_TRACK="true", DVC_NO_ANALYTICS="1", MLFLOW_DISABLE_TELEMETRY="true")
os.environ.update(PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_LOGGING_LEVEL="WARNING")

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
NO_OPTIONS: Mapping[str, Any] = {}


class World:
    """A folder with a pipeline in it, and the commands a person would type there."""

    def __init__(self, root: Path):
        self.root = root
        self.database = "mlflow.db"

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def dvc(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.command("dvc", *arguments, **environment)

    def verb(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.command("pipeline", *arguments, **environment)

    def edit(self, old: str, new: str) -> None:
        path = self.root / "params.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def digest(self, artifact: str) -> str:
        return json.loads((self.root / "artifacts" / artifact / "card.json").read_text())["digest"]

    @property
    def client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.root}/{self.database}")

    def runs(self, target: str = "") -> "list[Run]":
        """All runs, or those of one target, the latest first."""
        wanted = f"tags.target = '{target}'" if target else ""
        experiment = self.client.get_experiment_by_name("sam-distillery").experiment_id
        return list(self.client.search_runs([experiment], wanted, order_by=["start_time DESC"]))

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, "PATH": path, "PYTHONPATH": ""}


@pytest.fixture(scope="session")
def world_at() -> type[World]:
    """What gives the commands of a folder."""
    return World


def make_world(root: Path) -> World:
    """A checkout with stand-in verbs, under git and DVC."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests/world", root, ignore=ignore)
    for name in ("bench", "serve"):
        (root / "pipeline" / name).mkdir()
    settings = ("bench/__init__.py", "bench/settings.py", "serve/__init__.py", "serve/settings.py")
    command_line = ("__init__.py", "__main__.py", *settings)
    for name in command_line:
        shutil.copy(ROOT / "pipeline" / name, root / "pipeline" / name)
    for name in ("bench/ablations", "cli", "core", "ops", "promote", "tracking"):
        shutil.copytree(ROOT / "pipeline" / name, root / "pipeline" / name, ignore=ignore)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=ignore)
    (root / "pipeline/compare").mkdir()
    (root / "pipeline/compare/__init__.py").write_text('"""Only how a leaderboard is printed."""\n')
    shutil.copy(ROOT / "pipeline/compare/table.py", root / "pipeline/compare/table.py")
    for name in (".gitignore", ".dvcignore", "prefect.yaml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    (root / "presets").mkdir()
    shutil.copy(root / "params.yaml", root / "presets/demo.yaml")
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True)
    world = World(root)
    (root / "dvc.yaml").write_text(world.verb("dvc").stdout)
    return world


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Give a folder by its name, made by the first that asks for it among all processes of this test run.

    What takes long to make is made so. It is read, or copied, and never changed.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the folder of the run, above those of its processes

    def give(name: str, make: Callable[[Path], object]) -> Path:
        place = root / "made_once" / name
        place.parent.mkdir(exist_ok=True)
        with place.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = place.with_suffix(".done")
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)
                make(place)  # where it stays: MLflow keeps whole paths
                done.touch()
        return place

    return give


@pytest.fixture(scope="session")
def _world_once(made_once: MadeOnce) -> Path:
    return made_once("world", make_world)


@pytest.fixture
def world(_world_once: Path, tmp_path: Path) -> World:
    """A pipeline nothing of which has run."""
    return World(shutil.copytree(_world_once, tmp_path / "fresh", symlinks=True))


@pytest.fixture(scope="session")
def _built_once(_world_once: Path, made_once: MadeOnce) -> Path:
    def make(root: Path) -> None:
        done = World(shutil.copytree(_world_once, root, symlinks=True)).dvc("repro")
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once("built", make)


@pytest.fixture
def built(_built_once: Path, tmp_path: Path) -> World:
    """A pipeline all of which `dvc repro` has run."""
    return World(shutil.copytree(_built_once, tmp_path / "world", symlinks=True))


@pytest.fixture(scope="session")
def exported(made_once: MadeOnce) -> Callable[..., dict[str, Path]]:
    """Give the artifacts of a student with fresh weights: its ``checkpoint``, and that as ``onnx`` files."""

    def give(student: str, options: Mapping[str, Any] = NO_OPTIONS) -> dict[str, Path]:
        from pipeline.core.artifact import Card, Contents
        from pipeline.core.log import silent
        from pipeline.export import ExportConfig, export
        from pipeline.models import build
        from pipeline.models.sam import save_checkpoint

        def make(root: Path) -> None:
            checkpoint, files = root / "checkpoint", root / "onnx"
            for place in (checkpoint, files):
                place.mkdir(parents=True)
            save_checkpoint(build(student, options, seed=1), checkpoint)
            Card.seal(checkpoint, Contents(kind="checkpoint", model=student, options=options), {})
            settings = ExportConfig(opset=18, max_difference=1e-3)
            Card.seal(files, export(settings, align=checkpoint, student=student, out=files, log=silent), {})

        root = made_once(f"{student}-{zlib.crc32(json.dumps(options).encode()):x}", make)
        return {name: root / name for name in ("checkpoint", "onnx")}

    return give
