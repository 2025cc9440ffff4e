"""Peak memory of a model, measured in a process of its own.

In the process that evaluates, the allocator's leftovers of other work would hide what a model needs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pipeline

_PROBE = "pipeline.evaluate.probe"


@contextmanager
def measuring_memory(
    source: Path, image: Path, box: tuple[float, float, float, float], *, threads: int
) -> Iterator[Callable[[], float]]:
    """Measure while the body does something else.

    Args:
        source: An artifact that `pipeline.runtime.load` takes.
        image: A photograph.
        box: xyxy in the original frame.
        threads: Processor threads the model may use.

    Yields:
        What waits for the result: how far the resident memory of a fresh process grows while it loads the model and
        predicts once, in MiB. It raises RuntimeError, with the end of what the process said, if that failed.
    """
    root = str(Path(pipeline.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with TemporaryDirectory() as directory:
        answer, said = Path(directory) / "memory.json", Path(directory) / "said"
        command = [sys.executable, "-m", _PROBE, str(source), str(image), json.dumps(box), str(threads), str(answer)]
        with said.open("w") as stream:
            process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=stream, stderr=stream)

        def result() -> float:
            if process.wait():
                raise RuntimeError(f"measuring the memory of {source} failed: {said.read_text().strip()[-2000:]}")
            return float(json.loads(answer.read_text())["memory_mib"])

        try:
            yield result
        finally:
            process.kill()
            process.wait()
