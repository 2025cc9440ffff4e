"""The pipeline: every stage, in order."""

from pipeline.stage import Stage

_FRAMES = ("pipeline/geometry.py", "pipeline/masks.py")
_DATA = (*_FRAMES, "pipeline/data")
_MODELS = (*_FRAMES, "pipeline/models")
_TRAINING = (*_DATA, "pipeline/models", "pipeline/losses.py", "pipeline/training.py")
_MEASURING = (*_DATA, "pipeline/models", "pipeline/runtime", "pipeline/metrics.py")

PREPARE = Stage(
    run="pipeline.prepare:prepare",
    says="Bring images and masks into shards: train, calibration and validation splits",
    data=("${prepare.data}",),
    code=_DATA,
)
TEACHER = Stage(
    run="pipeline.teacher:teacher",
    says="Fetch the teacher's weights, check their hash and keys, and keep them as safetensors",
    code=_MODELS,
)
EMBED = Stage(
    run="pipeline.embed:embed",
    says="Compute the teacher's image embeddings, once per image",
    needs=(PREPARE, TEACHER),
    code=(*_DATA, "pipeline/models"),
    gpu=True,
)
DISTILL = Stage(
    run="pipeline.distill:distill",
    says="Teach a student's image encoder the teacher's embeddings",
    needs=(PREPARE, TEACHER, EMBED),
    over=("student",),
    section="distill.{student}",
    code=_TRAINING,
    gpu=True,
)
ALIGN = Stage(
    run="pipeline.align:align",
    says="Align a student's mask decoder with its own embeddings, by boxes and clicks",
    needs=(PREPARE, DISTILL),
    over=("student",),
    section="align.{student}",
    code=_TRAINING,
    gpu=True,
)
QUANTIZE = Stage(
    run="pipeline.quantize:quantize",
    says="Export a student to ONNX and lower its encoder's precision",
    needs=(PREPARE, ALIGN),
    over=("student", "precision"),
    code=(*_DATA, "pipeline/models"),
)
BUILD_ENGINE = Stage(
    run="pipeline.build_engine:build_engine",
    says="Compile the ONNX models for an inference engine",
    needs=(QUANTIZE,),
    over=("student", "precision"),
)
EVALUATE_TEACHER = Stage(
    run="pipeline.evaluate:evaluate_teacher",
    says="Measure the teacher's accuracy, latency and memory",
    needs=(PREPARE, TEACHER),
    section="evaluate",
    code=_MEASURING,
)
EVALUATE = Stage(
    run="pipeline.evaluate:evaluate",
    says="Measure an engine's accuracy, latency and memory",
    needs=(PREPARE, BUILD_ENGINE),
    over=("student", "precision"),
    code=_MEASURING,
)
COMPARE = Stage(
    run="pipeline.compare:compare",
    says="Put teacher and students side by side: leaderboard and report",
    needs=(PREPARE, EVALUATE_TEACHER, EVALUATE),
    code=_DATA,
    cached=False,
)

STAGES = (
    PREPARE,
    TEACHER,
    EMBED,
    DISTILL,
    ALIGN,
    QUANTIZE,
    BUILD_ENGINE,
    EVALUATE_TEACHER,
    EVALUATE,
    COMPARE,
)
