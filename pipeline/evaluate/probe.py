"""What `pipeline.evaluate.memory` starts: load a model, predict once, write down how far memory grew.

``python -m pipeline.evaluate.probe SOURCE IMAGE BOX THREADS ANSWER``
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
    """Measure, and write ``{"memory_mib": ...}`` to the last argument."""
    source, image, box, threads, answer = arguments
    die_with_parent()
    pixels = np.asarray(Image.open(image).convert("RGB"))
    _import_engine(Path(source))
    gc.collect()
    with suppress(OSError):  # where the kernel forbids it, the peak of the imports remains, which is hardly more
        _CLEAR.write_text(_RESET_PEAK)
    before = psutil.Process().memory_info().rss
    with torch.inference_mode():
        predictor = Predictor(load(Path(source), threads=int(threads)))
        predictor.set_image(pixels)
        predictor.predict(box=np.array(json.loads(box), np.float32), multimask_output=True)
    write_json(Path(answer), {"memory_mib": max(0, _peak_bytes() - before) / _MIB})


def _import_engine(source: Path) -> None:
    """Load the engine's library first: torch's is in memory already, and code is not what a model needs."""
    with suppress(ImportError):
        import_module(str(Card.read(source).load.get("engine", "torch")))


def _peak_bytes() -> int:
    """The most memory this process ever held.

    Not ``ru_maxrss`` where Linux has better: that keeps, across exec, the size of the process that forked.
    """
    if _STATUS.is_file():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    main(sys.argv[1:])
