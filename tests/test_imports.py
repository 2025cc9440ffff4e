import subprocess
import sys
from pathlib import Path

import pytest

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


def test_imports_keep_to_the_layers():
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_of_prefect_can_be_imported():
    # A newer fastapi than prefect knows breaks here, and with it every flow.
    import prefect.server.api.server  # noqa: F401
