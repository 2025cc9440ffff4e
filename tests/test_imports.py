import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "dvc",
    "mlflow",
    "prefect",
    "openvino",
    "onnxruntime",
    "onnx",
    "tensorrt",
    "flash_attn",
    "timm",
    "matplotlib",
)

BARE = """
import importlib, sys
sys.modules.update(dict.fromkeys({names!r}))  # None there is what an absent package is
importlib.import_module({module!r})
"""


@pytest.mark.parametrize("module", ["models", "data", "distill", "runtime"])
def test_a_bare_gpu_machine_can_import(module):
    code = BARE.format(names=OPTIONAL, module=f"pipeline.{module}")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HEAVY = (
    "cv2", "faster_coco_eval", "matplotlib", "mlflow", "modelopt", "onnx", "onnxruntime", "openvino", "pandas",
    "prefect", "pycocotools", "scipy", "segment_anything.predictor", "sqlalchemy", "torch._dynamo", "torchvision",
)  # fmt: skip
"""What takes time to import and is no part of every stage."""
SHAPES = {"cv2", "pycocotools"}
USED = {
    "prepare": SHAPES,
    "teacher": set(),
    "embed": set(),
    "distill": SHAPES,
    "align": SHAPES,
    "export": {"onnx"},
    "quantize": SHAPES | {"onnx", "onnxruntime"},
    "build_engine": SHAPES | {"onnx"},
    "evaluate": SHAPES | {"faster_coco_eval"},
    "compare": SHAPES | {"matplotlib"},
}


def heavy_after(code: str) -> set[str]:
    code += f"; import sys; print(*[name for name in {HEAVY!r} if sys.modules.get(name)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_stage_says_what_it_imports():
    assert {stage.module for stage in STAGES} == {f"pipeline.{name}" for name in USED}


@pytest.mark.parametrize("name", USED)
def test_a_stage_imports_nothing_heavy_that_it_does_not_use(name):
    assert heavy_after(f"import pipeline.{name}") <= USED[name]


def test_help_imports_nothing_heavy():
    assert heavy_after("import pipeline.__main__") == set()


def test_a_stage_uses_mlflow_without_pandas_which_can_be_imported_all_the_same(tmp_path):
    code = """
import sys
from pipeline.core import process
from pipeline.cli.stage_commands import WITHOUT
with process.starting(), process.without(WITHOUT):
    from pipeline.tracking import Store
    Store.open()
assert not set(WITHOUT) & set(sys.modules), set(WITHOUT) & set(sys.modules)
import pandas
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_keep_to_the_layers():
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_of_prefect_can_be_imported():
    # A newer fastapi than prefect knows breaks here, and with it every flow.
    import prefect.server.api.server  # noqa: F401
