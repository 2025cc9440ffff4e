"""All stages of the pipeline, in order."""

import re
from pathlib import Path

import yaml

from pipeline.core.errors import InputError
from pipeline.core.stage import Stage

_STUDENT = "deps/models/{student}"
"""Links to the code specific to this student; see `pipeline.models.students.link`."""
_TEACHER = "deps/models/${{teacher.name}}"
"""The same for the teacher; DVC substitutes its name from params.yaml."""
_PROBE = "pipeline/evaluate/probe.py"
"""Runs in a subprocess."""
_PAGE = tuple(f"pipeline/compare/{name}" for name in ("published.json", "report.css", "report.html.j2", "report.js"))

PREPARE = Stage(
    run="pipeline.prepare:prepare",
    summary="Convert images and masks to shards and splits",
    data=("${prepare.data}",),
)
TEACHER = Stage(
    run="pipeline.teacher:teacher",
    summary="Import the teacher's weights as safetensors",
    code=(*(f"pipeline/teacher/{name}/model.safetensors" for name in ("bundled", "bundled_v2")), _TEACHER),
)
EMBED = Stage(
    run="pipeline.embed:embed",
    summary="Compute the teacher's image embeddings",
    deps=(PREPARE, TEACHER),
    code=(_TEACHER,),
    gpu=True,
    distributed=True,
)
DISTILL = Stage(
    run="pipeline.distill:distill",
    summary="Distill the teacher into a student",
    deps=(PREPARE, TEACHER, EMBED),
    matrix=("student",),
    section="distill.{student}",
    code=(_STUDENT, _TEACHER),
    gpu=True,
    distributed=True,
)
ALIGN = Stage(
    run="pipeline.align:align",
    summary="Train a student on ground truth masks",
    deps=(PREPARE, TEACHER, EMBED, DISTILL),
    matrix=("student",),
    section="align.{student}",
    code=(_STUDENT, _TEACHER),
    gpu=True,
    distributed=True,
)
EXPORT = Stage(
    run="pipeline.export:export",
    summary="Export a student to ONNX and check it",
    deps=(ALIGN,),
    matrix=("student",),
    libraries=("onnx", "onnxscript", "torch"),
    code=(_STUDENT,),
)
QUANTIZE = Stage(
    run="pipeline.quantize:quantize",
    summary="Quantize an exported student",
    deps=(PREPARE, ALIGN, EXPORT),
    matrix=("student", "precision"),
    libraries=("nvidia-modelopt", "onnx", "onnxruntime", "torch"),
    code=(_STUDENT,),
)
BUILD_ENGINE = Stage(
    run="pipeline.build_engine:build_engine",
    summary="Build and check an inference engine",
    deps=(PREPARE, ALIGN, QUANTIZE),
    matrix=("student", "precision"),
    libraries=("onnxruntime", "openvino", "torch"),
    code=(_STUDENT,),
    gpu=True,
)
EVALUATE_TEACHER = Stage(
    run="pipeline.evaluate:evaluate_teacher",
    summary="Measure the teacher's accuracy and latency",
    deps=(PREPARE, TEACHER),
    section="evaluate",
    libraries=("torch",),
    data=("${evaluate.data}",),
    code=(_PROBE, _TEACHER),
    exclusive=True,
    distributed=True,
)
EVALUATE = Stage(
    run="pipeline.evaluate:evaluate",
    summary="Measure an engine's accuracy and latency",
    deps=(PREPARE, BUILD_ENGINE, EVALUATE_TEACHER),
    matrix=("student", "precision"),
    libraries=("onnxruntime", "openvino", "torch"),
    data=("${evaluate.data}",),
    code=(_STUDENT, _PROBE),
    gpu=True,
    exclusive=True,
    distributed=True,
)
COMPARE = Stage(
    run="pipeline.compare:compare",
    summary="Write the leaderboard and the report",
    deps=(PREPARE, QUANTIZE, EVALUATE_TEACHER, EVALUATE),
    code=_PAGE,
    lists=("students", "precisions"),
    sections=("promote",),
    plots={
        "Box mIoU": ("box_miou", "name", "bar_horizontal"),
        "Click mIoU": ("click_miou", "name", "bar_horizontal"),
        "Box mIoU against latency, ms": ("latency_ms", "box_miou", "scatter"),
        "Box mIoU against size, MiB": ("size_mib", "box_miou", "scatter"),
    },
    cached=False,
)

STAGES = (
    PREPARE,
    TEACHER,
    EMBED,
    DISTILL,
    ALIGN,
    EXPORT,
    QUANTIZE,
    BUILD_ENGINE,
    EVALUATE_TEACHER,
    EVALUATE,
    COMPARE,
)


def versions(lock: Path = Path("requirements.lock")) -> str:
    """Return the text of deps/versions.yaml: the locked versions of the libraries that stages name.

    Raises:
        InputError: A library is not in the lock file.
    """
    locked_versions = dict[str, str]()
    for name in sorted({name for stage in STAGES for name in stage.libraries}):
        locked = re.findall(rf"^{re.escape(name)}==(\S+)", lock.read_text(), re.MULTILINE)
        if not locked:
            raise InputError(f"{lock} does not list {name}: add it to pyproject.toml and run `make lock`.")
        locked_versions[name] = " or ".join(sorted(set(locked)))  # several if they differ between Python releases
    return "# Written by `make dvc.yaml` from requirements.lock.\n" + yaml.safe_dump(locked_versions).removesuffix("\n")
