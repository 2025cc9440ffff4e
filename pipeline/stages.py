"""The pipeline: every stage, in order."""

from pipeline.stage import Stage

_MASKS = "pipeline/masks.py"
_DATA = ("pipeline/geometry.py", "pipeline/data")
_MODELS = ("pipeline/geometry.py", "pipeline/models")
_TRAINING = (*_DATA, "pipeline/models", "pipeline/losses.py", "pipeline/training", "pipeline/ranks.py")
_RUNTIME = (*_MODELS, _MASKS, "pipeline/runtime")
_MEASURING = (
    *_RUNTIME,
    "pipeline/clicks.py",
    "pipeline/data",
    "pipeline/metrics.py",
    "pipeline/process.py",
    "pipeline/ranks.py",
    "pipeline/score",
    "pipeline/timing.py",
    "pipeline/training",
)

PREPARE = Stage(
    run="pipeline.prepare:prepare",
    says="Bring images and masks into shards: train, calibration and validation splits",
    data=("${prepare.data}",),
    code=(*_DATA, _MASKS),
)
TEACHER = Stage(
    run="pipeline.teacher:teacher",
    says="Fetch the teacher's weights, check their hash and keys, and keep them as safetensors",
    code=(*_TRAINING, _MASKS),
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
    says="Teach a student what its teacher knows, by one of the published recipes",
    needs=(PREPARE, TEACHER, EMBED),
    over=("student",),
    section="distill.{student}",
    code=(*_TRAINING, _MASKS),
    gpu=True,
    shared=True,
)
ALIGN = Stage(
    run="pipeline.align:align",
    says="Align a student with ground truth, by boxes and clicks: its decoder or all of it",
    needs=(PREPARE, DISTILL),
    over=("student",),
    section="align.{student}",
    code=(*_TRAINING, _MASKS),
    gpu=True,
    shared=True,
)
EXPORT = Stage(
    run="pipeline.export:export",
    says="Export a student to ONNX files in fp32, and compare these with PyTorch",
    needs=(ALIGN,),
    over=("student",),
    code=_RUNTIME,
)
QUANTIZE = Stage(
    run="pipeline.quantize:quantize",
    says="Lower the precision of an exported student's encoder",
    needs=(PREPARE, ALIGN, EXPORT),
    over=("student", "precision"),
    code=(*_RUNTIME, "pipeline/data", "pipeline/export", "pipeline/metrics.py"),
)
BUILD_ENGINE = Stage(
    run="pipeline.build_engine:build_engine",
    says="Compile the ONNX models for an inference engine",
    needs=(PREPARE, ALIGN, QUANTIZE),
    over=("student", "precision"),
    code=(*_RUNTIME, "pipeline/data"),
    gpu=True,
)
EVALUATE_TEACHER = Stage(
    run="pipeline.evaluate:evaluate_teacher",
    says="Measure the teacher's accuracy, latency and memory",
    needs=(PREPARE, TEACHER),
    section="evaluate",
    code=_MEASURING,
    alone=True,
    shared=True,
)
EVALUATE = Stage(
    run="pipeline.evaluate:evaluate",
    says="Measure an engine's accuracy, latency and memory",
    needs=(PREPARE, BUILD_ENGINE, EVALUATE_TEACHER),
    over=("student", "precision"),
    code=_MEASURING,
    gpu=True,
    alone=True,
    shared=True,
)
COMPARE = Stage(
    run="pipeline.compare:compare",
    says="Put teacher and students side by side: leaderboard and report",
    needs=(PREPARE, QUANTIZE, EVALUATE_TEACHER, EVALUATE),
    code=(*_DATA, _MASKS, "pipeline/metrics.py", "pipeline/provenance.py"),
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
