"""``python -m pipeline <verb>``: the command that people, DVC and the flows use.

Nothing heavy is imported before a verb needs it, so the help is there at once.
"""

import argparse
import errno
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline import process, telemetry
from pipeline.errors import GateError, InputError
from pipeline.stage import ARTIFACTS, Stage, dvc_yaml, kept_by_dvc, refuse_unknown_sections
from pipeline.stages import STAGES


@dataclass(frozen=True)
class Act:
    """A verb that is no stage: DVC does not run it.

    Args:
        run: Where its function is, ``module:function``; called with the arguments by name, it returns what to print.
        says: What it does, in one line.
        arguments: For each argument, what ``add_argument`` takes: its flag or name, and how it is read.
        explains: More for the help of this verb: an example, what the result means.
    """

    run: str
    says: str
    arguments: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    explains: str = ""


def _names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        return tuple(int(number) for number in _names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers between commas, not {text!r}") from None


ACTS: dict[str, Act] = {
    "preset": Act(
        "pipeline.presets:activate",
        "Make presets/NAME.yaml the active params.yaml",
        (
            ("name", {"metavar": "NAME", "help": "a file of presets/, without .yaml"}),
            (
                "changes",
                {"metavar": "KEY=VALUE", "nargs": "*", "help": "values to write into it: evaluate.images=20"},
            ),
        ),
    ),
    "dvc": Act("pipeline.__main__:show_dvc_yaml", "Print dvc.yaml as the declared stages have it"),
    "record": Act("pipeline.__main__:record", "Give every artifact in place its MLflow run, also one DVC restored"),
    "train_teacher": Act(
        "pipeline.train_teacher:train_teacher",
        "Train the bundled teacher by its recipe, pipeline/teacher/bundled/train.yaml",
        (
            ("--device", {"default": "cpu", "help": "as torch names it (default: cpu)"}),
            ("--install", {"action": "store_true", "help": "put the weights in the place of the bundled ones"}),
        ),
    ),
    "bench": Act(
        "pipeline.bench:bench",
        "Time models side by side: runtimes, precisions and students in one run",
        (
            (
                "subject",
                {
                    "metavar": "SUBJECT",
                    "help": "encoder: latency, one image; decoder: milliseconds per prompt, segment_anything's and "
                    "ours; training: one step of distillation",
                },
            ),
            (
                "--students",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("efficientvit_sam_nano",),
                    "help": "names of students (default: efficientvit_sam_nano)",
                },
            ),
            (
                "--runtimes",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("torch", "onnxruntime", "openvino"),
                    "help": "of torch, onnxruntime, openvino (default: all)",
                },
            ),
            (
                "--precisions",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("fp32", "bf16", "int8"),
                    "help": "of fp32, bf16, int8 (default: all)",
                },
            ),
            ("--threads", {"type": int, "metavar": "N", "default": 2, "help": "processor threads (default: 2)"}),
            ("--runs", {"type": int, "metavar": "N", "default": 20, "help": "samples of each row (default: 20)"}),
            (
                "--warmup",
                {"type": int, "metavar": "N", "default": 3, "help": "calls of each row before them (default: 3)"},
            ),
            (
                "--rounds",
                {"type": int, "metavar": "N", "default": 4, "help": "turns in which they are taken (default: 4)"},
            ),
            (
                "--max-foreign-load",
                {
                    "type": float,
                    "metavar": "SHARE",
                    "default": 0.1,
                    "help": "share of the processors that others may use during a sample (default: 0.1)",
                },
            ),
            (
                "--prompts",
                {
                    "type": _counts,
                    "metavar": "N,N",
                    "default": (1, 32, 64),
                    "help": "decoder: boxes per call (default: 1,32,64)",
                },
            ),
            (
                "--images",
                {"type": int, "metavar": "N", "default": 2, "help": "training: images per step (default: 2)"},
            ),
            (
                "--weights",
                {
                    "type": Path,
                    "metavar": "DIRECTORY",
                    "help": "take DIRECTORY/<student>, as in artifacts/align; default: fresh weights, as fast",
                },
            ),
            ("--json", {"dest": "as_json", "action": "store_true", "help": "print JSON and nothing else"}),
        ),
        "The first row, PyTorch in fp32, is the baseline that the column speedup divides by. All rows are measured in "
        "turns, after warm-up, and only while the machine is quiet; docs/benchmarks.md says what the columns mean. "
        "Example: python -m pipeline bench encoder --students efficientvit_sam_l0 --runtimes torch,openvino "
        "--precisions fp32,int8",
    ),
    "register": Act("pipeline.promote:register", "Register the best model of the leaderboard as challenger"),
    "promote": Act("pipeline.promote:promote", "Make the challenger champion, if the gate in params.yaml holds"),
    "rollback": Act("pipeline.promote:rollback", "Give the previous champion its place back"),
}
"""Verbs beside the stages, in the order of the help."""


def show_dvc_yaml() -> str:
    """The text of dvc.yaml."""
    return dvc_yaml(STAGES).removesuffix("\n")


def record() -> str:
    """Record all artifacts in place; one line for each."""
    from pipeline.config import read_params
    from pipeline.tracking import record_all

    runs = record_all(STAGES, read_params())
    return "\n".join(f"{target:<50} {run}" for target, run in runs) or "no artifact is in place: run `dvc repro`"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0, or 1 for a model the gate refused, 2 for bad input, 130 or 143 after Ctrl-C or SIGTERM.
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
            _run_stage(stage, arguments)
        else:
            print(_function(ACTS[verb].run)(**arguments))
    except KeyboardInterrupt as interrupt:
        return _refuse(f"{target} was stopped.", process.exit_code(interrupt), stage, target)
    except GateError as error:
        return _refuse(str(error), 1, None, target)
    except (InputError, FloatingPointError) as error:  # the latter: a training that diverged
        return _refuse(str(error), 2, stage, target)
    except Exception as error:
        reason = _from_system(error)
        if reason is None:
            raise
        return _refuse(reason, 2, stage, target)
    return 0


def _run_stage(stage: Stage, keys: Mapping[str, str]) -> None:
    from pipeline.config import read_params

    params = read_params()
    refuse_unknown_sections(STAGES, params)
    stage.config(params, keys)  # before MLflow is imported: a spelling mistake is told at once
    from pipeline.tracking import run_tracked

    card = run_tracked(stage, params, keys)
    print(f"{stage.path(keys)}: {card.kind}, digest {card.digest[:12]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Turn a Segment Anything teacher into small, fast, quantized, registered students.",
        epilog="Parameters are read from params.yaml. `dvc repro` runs every stage that is not up to date; "
        "`python -m flows.release` does so as a Prefect flow. `python -m pipeline VERB --help` tells more.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for stage in STAGES:
        reads = ", ".join(str(need.path({})) for need in stage.needs) or "nothing of other stages"
        names = {key: key.upper() for key in stage.over}
        section = (stage.section or stage.name).format(**names)
        about = f"{stage.says}. Reads {reads}, section {section} of params.yaml; writes {stage.path(names)}."
        command = verbs.add_parser(stage.name, help=stage.says, description=about)
        for key in stage.over:
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


def _from_system(error: BaseException) -> str | None:
    """What the machine refused, with a remedy; None for a fault of the program."""
    file = getattr(error, "filename", None)
    where = f"{file}: " if file else ""
    number = getattr(error, "errno", None)
    if number in _FULL or _says_full(error):
        remedy = "Free some (`dvc gc --workspace` empties DVC's cache) and run again."
        return f"{file or ARTIFACTS}: no space left on the device. {remedy}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}may not be written or read ({os.strerror(number)}). Give yourself the permission, or move it."
    if number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG):
        return f"{where}{os.strerror(number)}. Mend the disk or the limit (`ulimit -n`) and run again."
    return None


def _says_full(error: BaseException | None) -> bool:
    """Whether an error, or one it came from, is a full disk: safetensors, torch and SQLite have words of their own."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL:
            return True
        text = str(error).lower()
        if any(words in text for words in _SAY_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    raise SystemExit(main())
