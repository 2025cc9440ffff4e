"""Subprocess of `pipeline.evaluate.memory`: load a model, predict once, and write the memory growth.

``python -m pipeline.evaluate.probe SOURCE IMAGE BOX THREADS DEVICE OUTPUT``
"""

import gc
import json
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from pipeline.core.artifact import Card, write_json
from pipeline.core.process import die_with_parent
from pipeline.runtime import Predictor, load

_MIB = 1 << 20
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def main(arguments: Sequence[str]) -> None:
    """Measure and write ``{"memory_mib": ...}`` to the last argument's path; with a GPU, ``gpu_memory_mib`` too."""
    source, image, box, threads, device, output = arguments
    die_with_parent()
    pixels = np.asarray(Image.open(image).convert("RGB"))
    _import_engine(Path(source))
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.zeros(1, device=device)  # creates the CUDA context, which is not the model's
        free = torch.cuda.mem_get_info(device)[0]
    gc.collect()
    with suppress(OSError):  # if the kernel forbids it, the peak includes the imports, which is hardly more
        _CLEAR.write_text(_RESET_PEAK)
    before = psutil.Process().memory_info().rss
    with torch.inference_mode():
        predictor = Predictor(load(Path(source), device, int(threads)))
        predictor.set_image(pixels)
        predictor.predict(box=np.array(json.loads(box), np.float32), multimask_output=True)
    measured = {"memory_mib": max(0, _peak_bytes() - before) / _MIB}
    if on_gpu:  # PyTorch returns nothing to the GPU while it runs, so the end is the peak; TensorRT has its own memory
        measured["gpu_memory_mib"] = max(0, free - torch.cuda.mem_get_info(device)[0]) / _MIB
    write_json(Path(output), measured)


def _import_engine(source: Path) -> None:
    """Import the engine's library, so that its code does not count as the model's memory, as with torch."""
    with suppress(ImportError):
        import_module(str(Card.read(source).load.get("engine", "torch")))


def _peak_bytes() -> int:
    """Peak resident memory of this process.

    On Linux from ``VmHWM``, since ``ru_maxrss`` keeps the forking process's size across exec.
    """
    if _STATUS.is_file():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    main(sys.argv[1:])
