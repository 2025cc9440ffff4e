"""``python -m pipeline <verb>``: the command that people, DVC and the flows use.

Nothing heavy is imported before a verb needs it, so the help is there at once.
"""

import argparse
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.acts import ACTS
from pipeline.core import process, telemetry
from pipeline.core.artifact import Card, read_refusals
from pipeline.core.errors import GateError, InputError, Refused
from pipeline.core.stage import ARTIFACTS, RESTORE_ONLY, Stage, dvc_yaml, kept_by_dvc, refuse_unknown_sections
from pipeline.stages import STAGES

WITHOUT = ("pandas", "pyarrow", "sklearn")
"""What MLflow imports where it is installed, and a stage's record does not need; mlflow-skinny comes without."""
REFUSED = 3
"""Exit code where a candidate missed a gate: nothing broke, and the others can go on."""


def show_dvc_yaml() -> str:
    """The text of dvc.yaml."""
    return dvc_yaml(STAGES).removesuffix("\n")


def record() -> str:
    """Record all artifacts in place; one line for each."""
    from pipeline.core.config import read_params
    from pipeline.tracking import record_all

    runs = record_all(STAGES, read_params())
    return "\n".join(f"{target:<50} {run}" for target, run in runs) or "no artifact is in place: run `dvc repro`"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0, or 1 for a model the gate of `promote` refused, 2 for bad input, 3 for a candidate that a stage refused
        (under DVC 0, as the refusal is a result), 130 or 143 after Ctrl-C or SIGTERM.
    """
    arguments = vars(_parser().parse_args(argv))
    verb = arguments.pop("verb")
    telemetry.off()
    if "DVC_STAGE" in os.environ:  # a person may log out on a long run; a killed `dvc` leaves nothing behind
        process.die_with_parent()
    process.raise_on_signals()
    stage = next((s for s in STAGES if s.name == verb), None)
    target = stage.target(arguments) if stage else verb
    try:
        if stage:
            return _run_stage(stage, arguments)
        print(_function(ACTS[verb].run)(**arguments))
    except KeyboardInterrupt as interrupt:
        return _refuse(f"{target} was stopped.", process.exit_code(interrupt), stage, target)
    except GateError as error:
        return _refuse(str(error), 1, None, target)
    except Refused as refused:  # by an act, such as a bench; a stage makes it its result
        return _refuse(f"{refused.rule}: {refused.reason}", REFUSED, None, target)
    except (InputError, FloatingPointError) as error:  # the latter: a training that diverged
        return _refuse(str(error), 2, stage, target)
    except Exception as error:
        reason = _from_system(error)
        if reason is None:
            raise
        return _refuse(reason, 2, stage, target)
    return 0


def _run_stage(stage: Stage, keys: Mapping[str, str]) -> int:
    from pipeline.core.config import read_params
    from pipeline.core.log import silent

    if os.environ.get(RESTORE_ONLY):
        raise InputError(
            f"the result of {stage.target(keys)} did not come back from the worker: code or parameters changed "
            "while it ran, or DVC's remote lost it. Run the release again."
        )
    params = read_params()
    refuse_unknown_sections(STAGES, params)
    with process.starting():
        config = stage.config(params, keys)  # before MLflow is imported: a spelling mistake is told at once
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not stage.distributed:
        raise InputError(f"{stage.name} runs in one process: start it without torchrun.")
    if int(os.environ.get("RANK", "0")) > 0:
        stage.follow(config, keys, silent)
        return 0
    with process.starting(), process.without(WITHOUT):
        from pipeline.tracking import run_tracked

    card = run_tracked(stage, params, keys)
    place = stage.path(keys)
    print(f"{place}: {card.kind}, digest {card.digest[:12]}")
    for line in _refusals(place, card):
        print(line)
    return REFUSED if card.refusal and "DVC_STAGE" not in os.environ else 0


def _refusals(place: Path, card: Card) -> Iterator[str]:
    """What a person must not miss: that this candidate is refused, or which ones a comparison goes without."""
    if card.refusal:
        yield f"refused by {card.refusal}. {card.refusal.reason}"
    elif found := read_refusals(place):
        yield f"refused: {'; '.join(f'{name} ({refusal})' for name, refusal in found.items())}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Turn a Segment Anything teacher into small, fast, quantized, registered students.",
        epilog="Parameters are read from params.yaml. `dvc repro` runs every stage that is not up to date; "
        "`python -m flows.release` does so as a Prefect flow. `python -m pipeline VERB --help` tells more.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for stage in STAGES:
        reads = ", ".join(str(dep.path({})) for dep in stage.deps) or "nothing of other stages"
        names = {key: key.upper() for key in stage.matrix}
        section = (stage.section or stage.name).format(**names)
        about = f"{stage.says}. Reads {reads}, section {section} of params.yaml; writes {stage.path(names)}."
        command = verbs.add_parser(stage.name, help=stage.says, description=about)
        for key in stage.matrix:
            command.add_argument(f"--{key}", required=True, help=f"one of `{key}s` in params.yaml")
    for name, act in ACTS.items():
        command = verbs.add_parser(name, help=act.says, description=f"{act.says}. {act.explains}")
        for flag, options in act.arguments:
            command.add_argument(flag, **options)
    return parser


def _function(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _refuse(reason: str, code: int, stage: Stage | None, target: str) -> int:
    """Say in one line why, and where an earlier result is that DVC took away before it started the stage."""
    line = f"error: {' '.join(reason.split())}"
    if stage and "DVC_STAGE" in os.environ and kept_by_dvc(target):
        line += f" The earlier result is in DVC's cache: `dvc checkout {target}` brings it back."
    print(line, file=sys.stderr)
    return code


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAY_FULL = (
    "no space left on device", "os error 28", "file too large", "os error 27", "database or disk is full",
    "iostream error",  # all that a C++ stream has to say
)  # fmt: skip
_SAY_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def _from_system(error: BaseException) -> str | None:
    """What the machine refused, with a remedy; None for a fault of the program."""
    file = getattr(error, "filename", None)
    where = f"{file}: " if file else ""
    number = getattr(error, "errno", None)
    if _says(error, _FULL, _SAY_FULL):
        remedy = "Free some (`dvc gc --workspace` empties DVC's cache) and run again."
        return f"{file or ARTIFACTS}: no space left on the device. {remedy}"
    if isinstance(error, MemoryError) or _says(error, (errno.ENOMEM,), _SAY_NO_MEMORY):
        return (
            "memory ran out. Let the stage's section of params.yaml take less at once (batch, masks, prompts, "
            "calibration_images); in a training, optimizer.accumulate cuts a batch into parts."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}may not be written or read ({os.strerror(number)}). Give yourself the permission, or move it."
    if number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG):
        return f"{where}{os.strerror(number)}. Mend the disk or the limit (`ulimit -n`) and run again."
    return None


def _says(error: BaseException | None, numbers: Sequence[int], words: Sequence[str]) -> bool:
    """Whether an error, or one it came from, has such a number or such words: not every library passes numbers on."""
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(each in str(error).lower() for each in words):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    raise SystemExit(main())
