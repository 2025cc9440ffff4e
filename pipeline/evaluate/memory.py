"""Peak memory of a model, measured in a fresh process.

In the evaluating process, memory that the allocator retains from other work would hide the model's own use.
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
    source: Path, image: Path, box: tuple[float, float, float, float], *, threads: int, device: str = "cpu"
) -> Iterator[Callable[[], dict[str, float]]]:
    """Measure in the background while the body of the ``with`` statement runs.

    Args:
        source: An artifact that `pipeline.runtime.load` accepts.
        image: Path of an image.
        box: xyxy in pixels of the image.
        threads: CPU threads of the model.
        device: Device of the model, as `pipeline.runtime.load` takes it.

    Yields:
        A function that waits for the result: ``memory_mib``, the growth of a fresh process's resident memory while it
        loads the model and predicts once, and on a GPU ``gpu_memory_mib``, by how much free memory of the GPU falls
        meanwhile, without the CUDA context. It raises RuntimeError with the end of the process's output on failure.
    """
    root = str(Path(pipeline.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with TemporaryDirectory() as directory:
        output, log = Path(directory) / "memory.json", Path(directory) / "log"
        command = [sys.executable, "-m", _PROBE, str(source), str(image), json.dumps(box), str(threads)]
        command += [device, str(output)]
        with log.open("w") as stream:
            process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=stream, stderr=stream)

        def result() -> dict[str, float]:
            if process.wait():
                raise RuntimeError(f"measuring the memory of {source} failed: {log.read_text().strip()[-2000:]}")
            measured: dict[str, float] = json.loads(output.read_text())
            return measured

        try:
            yield result
        finally:
            process.kill()
            process.wait()
