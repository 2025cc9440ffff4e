"""A pipeline of stand-in verbs that run at once: the frame is what the tests look at."""

from pipeline.core.stage import Stage

PREPARE = Stage(run="pipeline.verbs:prepare", says="Make data")
DISTILL = Stage(
    run="pipeline.verbs:distill",
    says="Train",
    deps=(PREPARE,),
    matrix=("student",),
    section="distill.{student}",
    gpu=True,
)
EVALUATE_TEACHER = Stage(
    run="pipeline.verbs:evaluate_teacher", says="Measure", deps=(PREPARE,), section="evaluate", exclusive=True
)
EVALUATE = Stage(
    run="pipeline.verbs:evaluate", says="Measure", deps=(DISTILL,), matrix=("student", "precision"), exclusive=True
)
COMPARE = Stage(
    run="pipeline.verbs:compare",
    says="Compare",
    deps=(EVALUATE_TEACHER, EVALUATE),
    plots={"Accuracy": ("latency_ms", "box_miou", "scatter")},
    cached=False,
)

STAGES = (PREPARE, DISTILL, EVALUATE_TEACHER, EVALUATE, COMPARE)
