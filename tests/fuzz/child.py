"""Child process: executes the cases that stdin names, one line each, and answers each with a line of JSON."""

import faulthandler
import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
from mlflow.exceptions import MlflowException

from pipeline.core.errors import InputError
from tests.fuzz.cases import (
    coco,
    images,
    not_files,
    own_files,
    parameters,
    prompts,
    sa1b,
    segmentations,
    served,
    tensors,
)

KINDS = {
    "annotations": coco.annotations,
    "score": coco.scores,
    "boxes": prompts.boxes,
    "points": prompts.points,
    "segmentations": segmentations.segmentations,
    "params text": parameters.texts,
    "params values": parameters.values,
    "images": images.images,
    "sa1b records": sa1b.records,
    "sa1b tars": sa1b.tars,
    "tensors": tensors.tensors,
    "served model": served.requests,
    "own files": own_files.own_files,
    "not files": not_files.not_files,
}
LIMIT = 10
"""Seconds per case. The alarm ends the process, also within C code."""


def execute(kind: str, seed: int) -> tuple[str, str]:
    """Outcome of a case (accepted, refused or fault), and what is wrong."""
    case = KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind)]))
    try:
        with tempfile.TemporaryDirectory() as folder:
            case.run(Path(folder))
    except InputError as error:
        return _refused(str(error))
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            return "fault", f"MlflowException with {error.error_code}"
        return _refused(error.message)
    except BaseException:  # noqa: BLE001 any other exception is a fault
        return "fault", traceback.format_exc()[-1500:]
    return ("fault", "an invalid case was accepted") if case.invalid else ("accepted", "")


def _refused(text: str) -> tuple[str, str]:
    if "\n" in text or len(text) > 3000 or any(0xD800 <= ord(character) < 0xE000 for character in text):
        return "fault", f"the error is not one printable line: {text[:300]!r}"
    return "refused", ""


def main() -> None:
    """Answer stdin's lines until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the readers print is no answer
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        kind, seed = json.loads(line)
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        outcome = execute(kind, seed)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    main()
