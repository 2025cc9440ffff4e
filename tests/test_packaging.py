"""The wheel: what is in it, and that its base needs nothing of the extras."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import grimp
import pytest

from pipeline.core.bundled import ARTIFACTS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PRESETS = sorted(path.name for path in (ROOT / "presets").iterdir())


def packages(*extras):
    """What these extras, or without one the base, name."""
    lists = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    names = {re.split(r"[<>=\[; ]", line)[0] for line in chain.from_iterable(lists)}
    return {re.sub(r"[._]", "-", name) for name in names} - {"sam-distillery"}


@pytest.mark.parametrize("module", ["cli", "runtime", "verify", "evaluate.average_precision"])
def test_the_base_imports_without_the_extras(module):
    absent = {name.replace("-", "_") for name in packages("train", "quantize", "flows", "gpu", "flash-attn")} | {
        "modelopt"
    }
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import pipeline.{module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_package_that_the_code_imports_is_declared():
    graph = grimp.build_graph("pipeline", "flows", include_external_packages=True)
    external = {name for name in graph.modules if graph.is_module_squashed(name)} - set(sys.stdlib_module_names)
    declared = packages() | packages("train", "quantize", "flows", "serve", "gpu", "flash-attn")
    of_module = packages_distributions() | {"flash_attn": ["flash-attn"], "tensorrt": ["tensorrt"]}
    undeclared = {name for name in external if not {re.sub("[._]", "-", d.lower()) for d in of_module[name]} & declared}
    assert undeclared == set()


@pytest.mark.slow  # builds in an environment of its own
def test_the_wheel_has_the_presets_the_types_and_the_command(tmp_path):
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2] or name for name in archive.namelist()}
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "sam-distillery = pipeline.__main__:main" in archive.read(entry).decode()
    assert {f"share/sam-distillery/presets/{name}" for name in PRESETS} <= names
    files = ("compare/report.html.j2", "compare/published.json", "serve/static/index.html", "serve/static/main.js")
    bundled = [f"teacher/{name}/model.safetensors" for name in ("bundled", *ARTIFACTS)]
    wanted = ("py.typed", "promote/model_card.md.j2", "train_teacher/recipe.yaml", *bundled, *files)
    assert {f"pipeline/{name}" for name in wanted} <= names
    assert not [name for name in names if name.startswith(("tests", "deps"))]


def pins(lock):
    """Versions by name and marker in a lock file."""
    return dict(re.findall(r"^([\w.-]+(?:\[\w+\])?)==(\S+?)(?: ;[^\\]*)? \\$", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-gpu.lock"])
def test_a_lock_has_names_versions_and_hashes_only(lock):
    line = re.compile(r"[\w.-]+==[\w.+!]+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert not [text for text in (ROOT / lock).read_text().splitlines() if not line.fullmatch(text)]


def test_the_lock_for_gpus_adds_to_the_other_and_changes_nothing():
    base, gpu = pins("requirements.lock"), pins("requirements-gpu.lock")
    assert {name: gpu[name] for name in base.keys() & gpu.keys()} == {
        name: base[name] for name in base.keys() & gpu.keys()
    }
    assert {"flash-attn", "ninja", "tensorrt", "torch", "wheel"} <= gpu.keys()


def test_setup_removes_nothing_and_setup_gpu_builds_against_the_torch_that_is_there(tmp_path):
    for name in ("Makefile", "requirements.lock", "requirements-gpu.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "--dry-run", "setup", "setup-gpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip sync" not in done.stdout
    installs = [line for line in done.stdout.splitlines() if "uv pip install" in line and "--python" in line]
    assert all("--require-hashes" in line for line in installs)
    versions = pins("requirements-gpu.lock")
    assert f"tensorrt=={versions['tensorrt']}" in installs[1]
    assert f"wheel=={versions['wheel']}" in installs[1]
    assert "--no-build-isolation --no-cache" in installs[2]
    assert f"flash-attn=={versions['flash-attn']}" in installs[2]
