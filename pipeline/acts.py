"""The verbs that are no stages, declared once: where their function is, and how their arguments are read.

Nothing is imported here that takes time: the help of the command line is made of this.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        "pipeline.core.presets:activate",
        "Make presets/NAME.yaml the active params.yaml",
        (
            ("name", {"metavar": "NAME", "help": "a file of presets/, without .yaml"}),
            (
                "changes",
                {
                    "metavar": "KEY=VALUE",
                    "nargs": "*",
                    "help": "values to write into it: build_engine.engine=onnxruntime",
                },
            ),
        ),
    ),
    "dvc": Act("pipeline.__main__:show_dvc_yaml", "Print dvc.yaml as the declared stages have it"),
    "versions": Act("pipeline.stages:versions", "Print deps/versions.yaml: the locked libraries that decide results"),
    "links": Act("pipeline.models.students:link", "Write deps/students/: links to the code of each, for dvc.yaml"),
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
                    "help": "attention: dense and dilated, by segment and interval; encoder: latency, one image; "
                    "decoder: milliseconds per prompt, segment_anything's and ours; training: one step of "
                    "distillation beside a bare one; evaluate: milliseconds per instance by box and clicks, published "
                    "and ours; everything: all masks of one image, by segment_anything's generator and ours",
                },
            ),
            (
                "--students",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("efficientvit_sam_nano",),
                    "help": "names of students, or all (default: efficientvit_sam_nano); attention takes none",
                },
            ),
            (
                "--runtimes",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("torch", "onnxruntime", "openvino", "cuda", "cuda_compile", "cuda_graph"),
                    "help": "of torch, onnxruntime, openvino; on a GPU cuda, cuda_compile, cuda_graph (default: all)",
                },
            ),
            (
                "--precisions",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("fp32", "bf16", "fp16", "int8"),
                    "help": "of fp32, bf16, fp16, int8 (default: all)",
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
                "--batches",
                {
                    "type": _counts,
                    "metavar": "N,N",
                    "default": (),
                    "help": "encoder: images per call (default: 1, and 16 on a GPU)",
                },
            ),
            (
                "--images",
                {
                    "type": int,
                    "metavar": "N",
                    "default": 2,
                    "help": "training: images per step; evaluate: images (default: 2)",
                },
            ),
            (
                "--photographs",
                {
                    "type": Path,
                    "metavar": "DIRECTORY",
                    "help": "evaluate: take instances.json and images/ of DIRECTORY; default: drawn scenes",
                },
            ),
            (
                "--tokens",
                {
                    "type": _counts,
                    "metavar": "N,N",
                    "default": (1024, 4096, 16384),
                    "help": "attention: lengths of sequences (default: 1024,4096,16384)",
                },
            ),
            (
                "--steps",
                {
                    "type": int,
                    "metavar": "N",
                    "default": 60,
                    "help": "training: steps at one go, in which memory and waiting are watched (default: 60)",
                },
            ),
            (
                "--points",
                {
                    "type": int,
                    "metavar": "N",
                    "default": 32,
                    "help": "everything: points along one side of the grid (default: 32)",
                },
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
        "The first row is the baseline that the column speedup divides by: for encoder the teacher (SAM ViT-B, or the "
        "bundled one of nano students), for attention dense attention over as many tokens, for evaluate the published "
        "evaluation call by call, for training a bare loop beside each student's own, else PyTorch in fp32. All "
        "rows are measured in turns, after warm-up, and only while the machine is quiet; docs/benchmarks.md says what "
        "the columns mean. Example: python -m pipeline bench encoder --students efficientvit_sam_l0 "
        "--runtimes torch,openvino --precisions fp32,int8",
    ),
    "recipes": Act(
        "pipeline.bench.ablations.recipes:compare_recipes",
        "What each part of a recipe of distillation is worth, for students and seeds",
        (
            ("--students", {"type": _names, "required": True, "metavar": "A,B", "help": "students of params.yaml"}),
            (
                "--recipes",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("embedding", "tokens_masks", "hard_prompts", "hard_mask_weight", "ground_truth"),
                    "help": "of embedding, tokens_masks, hard_prompts, hard_mask_weight (TinySAM's ladder), "
                    "ground_truth (default: these five); plain, layer_wise",
                },
            ),
            ("--seeds", {"type": _counts, "metavar": "N,N", "default": (0, 1, 2), "help": "default: 0,1,2"}),
            ("--steps", {"type": int, "default": 80, "metavar": "N", "help": "of each training (default: 80)"}),
            ("--artifacts", {"type": Path, "default": Path("artifacts"), "help": "of prepare, teacher and embed"}),
            ("--out", {"type": Path, "default": Path("recipes.jsonl"), "help": "rows as JSON lines, gone on with"}),
        ),
        "Needs `dvc repro embed`. Trains by section distill.<student> of params.yaml but for its recipe, steps and "
        "seed; warm-up and cool-down keep their shares of the steps, and ema_decay stays: averaged over far more "
        "steps than there are, weights are those of the beginning. Measures box and one-click mIoU on the validation "
        "split, before alignment.",
    ),
    "study": Act(
        "pipeline.bench.ablations.quantization:quantization",
        "What methods of quantization cost in accuracy, for students, widths and calibration seeds",
        (
            ("--students", {"type": _names, "required": True, "metavar": "A,B", "help": "students, all aligned"}),
            (
                "--methods",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("max", "percentile", "modelopt_entropy", "search", "search_split"),
                    "help": "of max, percentile, entropy, modelopt_max, modelopt_entropy, search, search_split "
                    "(default: all but entropy and modelopt_max)",
                },
            ),
            (
                "--widths",
                {
                    "type": _names,
                    "metavar": "A,B",
                    "default": ("w8a8", "w6a6", "w4a8"),
                    "help": "bits of weights and activations: w8a8, w8a8_reduced, w6a6, w4a8 (default: all)",
                },
            ),
            (
                "--seeds",
                {
                    "type": _counts,
                    "metavar": "N,N",
                    "default": (0, 1, 2),
                    "help": "choose the calibration images (default: 0,1,2)",
                },
            ),
            ("--attention", {"action": "store_true", "help": "also round products of two activations"}),
            (
                "--checkpoints",
                {"type": Path, "metavar": "DIRECTORY", "default": Path("artifacts/align"), "help": "of align"},
            ),
            (
                "--dataset",
                {"type": Path, "metavar": "DIRECTORY", "default": Path("artifacts/prepare"), "help": "of prepare"},
            ),
            (
                "--out",
                {
                    "type": Path,
                    "metavar": "FILE",
                    "default": Path("study.jsonl"),
                    "help": "rows as JSON lines; those in it are not measured again (default: study.jsonl)",
                },
            ),
        ),
        "Needs `dvc repro align`. Rounds in simulation, the encoder alone, by section quantize of params.yaml but for "
        "its method, calibration and seed; measures box and one-click mIoU on the validation split. Example: python -m "
        "pipeline study --students tinysam_nano --methods max,search --widths w6a6",
    ),
    "score": Act(
        "pipeline.evaluate.average_precision:score",
        "Average precision of a results file in COCO's format, as JSON",
        (
            (
                "--gt",
                {"type": Path, "required": True, "metavar": "JSON", "help": "annotations in COCO's or LVIS's format"},
            ),
            (
                "--results",
                {"type": Path, "required": True, "metavar": "JSON", "help": "detections in COCO's results format"},
            ),
            (
                "--iou-type",
                {"choices": ("segm", "bbox"), "required": True, "help": "what is matched: masks or boxes"},
            ),
            ("--lvis", {"action": "store_true", "help": "LVIS's rules: 300 detections; rare, common and frequent"}),
        ),
        "Prints COCO's twelve figures, or LVIS's thirteen, to six digits; -1 where there is nothing to find. Example: "
        "python -m pipeline score --gt instances_val2017.json --results detections.json --iou-type segm",
    ),
    "verify": Act(
        "pipeline.verify:verify",
        "Repeat an engine's self-check on this machine",
        (
            ("directory", {"type": Path, "metavar": "DIR", "help": "an engine: artifacts/build_engine/STUDENT/int8"}),
            (
                "--against",
                {
                    "type": Path,
                    "metavar": "DIR",
                    "help": "fp32 engine of the same student, to time beside (default: DIR/../fp32, if it is there)",
                },
            ),
            ("--device", {"help": "as torch names it (default: where the engine runs by itself)"}),
            ("--threads", {"type": int, "metavar": "N", "help": "processor threads (default: the runtime's choice)"}),
            ("--json", {"dest": "as_json", "action": "store_true", "help": "print JSON"}),
        ),
        "Prints cosine of embeddings and IoU of masks to the student in fp32, what the processor can do, versions of "
        "libraries, and whether a lower precision is faster here. Exits with 1 where the engine misses the gate it was "
        "built under. Example: python -m pipeline verify artifacts/build_engine/tinysam_nano/int8",
    ),
    "register": Act("pipeline.promote:register", "Register the best model of the leaderboard as challenger"),
    "promote": Act("pipeline.promote:promote", "Make the challenger champion, if the gate in params.yaml holds"),
    "rollback": Act("pipeline.promote:rollback", "Give the previous champion its place back"),
}
"""Verbs beside the stages, in the order of the help."""
