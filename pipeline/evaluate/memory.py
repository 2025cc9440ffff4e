"""Peak memory of a model, measured in a process of its own.

In the process that evaluates, the allocator's leftovers of other work would hide what a model needs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pipeline

_PROBE = "pipeline.evaluate.probe"


def measure_memory(source: Path, image: Path, box: tuple[float, float, float, float], *, threads: int) -> float:
    """How far the resident memory of a fresh process grows while it loads a model and predicts once, in MiB.

    Args:
        source: An artifact that `pipeline.runtime.load` takes.
        image: A photograph.
        box: xyxy in the original frame.
        threads: Processor threads the model may use.

    Raises:
        RuntimeError: The process failed; the text ends with what it said.
    """
    root = str(Path(pipeline.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with TemporaryDirectory() as directory:
        answer = Path(directory) / "memory.json"
        command = [sys.executable, "-m", _PROBE, str(source), str(image), json.dumps(box), str(threads), str(answer)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {source} failed: {done.stderr.strip()[-2000:]}")
        return float(json.loads(answer.read_text())["memory_mib"])
