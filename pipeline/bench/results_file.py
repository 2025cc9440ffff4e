"""Results files of the ablations: JSON lines, with which an interrupted ablation resumes."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.core.distributed import Ranks
from pipeline.evaluate.accuracy import evaluate_accuracy
from pipeline.evaluate.images import Done, Run
from pipeline.evaluate.validation import validation_sets
from pipeline.runtime import Predictor, Segmenter

_PROMPTS_BATCH = 32


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file of JSON lines; none if it does not exist."""
    for line in path.read_text().splitlines() if path.is_file() else ():
        yield json.loads(line)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to the file."""
    with path.open("a") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")


def accuracy(segmenter: Segmenter, dataset: Path) -> dict[str, float]:
    """Measure ``box_miou`` and ``click_miou`` on the validation split of an artifact of `prepare`."""
    with ThreadPoolExecutor() as pool:
        run = Run(Predictor(segmenter), pool, _PROMPTS_BATCH, Ranks(), Done(None))
        first, *_ = validation_sets(dataset)
        figures = evaluate_accuracy(run, first, first.photographs(), pictures=0, with_mask_input=False).metrics()
    return {name: figures[name] for name in ("box_miou", "click_miou")}


def mean_and_spread(values: ArrayLike, digits: int = 2) -> str:
    """Format the mean and the largest distance from it."""
    array = np.asarray(values)
    return f"{array.mean():.{digits}f} ± {np.abs(array - array.mean()).max():.{digits}f}"
