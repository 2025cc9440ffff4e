"""A pipeline of stand-in verbs that run at once: the frame is what the tests look at."""

from pipeline.core.stage import Stage

PREPARE = Stage(run="pipeline.verbs:prepare", summary="Make data")
DISTILL = Stage(
    run="pipeline.verbs:distill",
    summary="Train",
    deps=(PREPARE,),
    matrix=("student",),
    section="distill.{student}",
    gpu=True,
)
EVALUATE_TEACHER = Stage(
    run="pipeline.verbs:evaluate_teacher", summary="Measure", deps=(PREPARE,), section="evaluate", exclusive=True
)
EVALUATE = Stage(
    run="pipeline.verbs:evaluate", summary="Measure", deps=(DISTILL,), matrix=("student", "precision"), exclusive=True
)
COMPARE = Stage(
    run="pipeline.verbs:compare",
    summary="Compare",
    deps=(EVALUATE_TEACHER, EVALUATE),
    plots={"Accuracy": ("latency_ms", "box_miou", "scatter")},
    cached=False,
)

STAGES = (PREPARE, DISTILL, EVALUATE_TEACHER, EVALUATE, COMPARE)
