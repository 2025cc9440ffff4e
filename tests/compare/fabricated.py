"""Evaluations without models: a small world for single claims, and one as rich as a real run for looking at the page.

`python -m tests.compare.fabricated OUT` writes the rich one's report.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.compare import CompareConfig, compare
from pipeline.core.artifact import Card, Contents, Refusal, write_json, write_metrics
from pipeline.core.log import silent
from pipeline.data import coco, scenes
from pipeline.evaluate.baselines import ellipse, trivial_masks
from pipeline.evaluate.photographs import EVERYTHING, PROMPTS
from pipeline.ops import masks
from pipeline.ops.metrics import band_means, iou

SHADES = {"fp32": 2, "int8": 5}
CLICKS = ("click", "click3", "click5", "click3_fed", "click5_fed")


def truths():
    for number in range(1, 5):
        mask = np.zeros((60, 80), bool)
        mask[10 : 20 + 8 * number, 12 : 30 + 10 * number] = True
        yield number, mask


def dataset(directory, images, annotations):
    """``images`` are arrays by id; ``annotations`` are pairs of image id and mask by id."""
    (directory / "validation" / "images").mkdir(parents=True)
    listed = []
    for number, pixels in images.items():
        Image.fromarray(pixels).save(directory / "validation" / "images" / f"{number}.jpg")
        height, width = pixels.shape[:2]
        listed.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
    found = [
        {"id": n, "image_id": image, "segmentation": masks.encode(mask), "category_id": 1}
        for n, (image, mask) in annotations.items()
    ]
    write_json(
        directory / "validation" / "instances.json",
        {"images": listed, "annotations": found, "categories": [{"id": 1, "name": "object"}]},
    )
    write_metrics(directory, {"train_images": 7.0, "train_instances": 21.0, "validation_images": float(len(images))})
    return Card.seal(directory, Contents(kind="dataset"), {})


def small_dataset(directory):
    images = {number: np.full((60, 80, 3), 90 * number, np.uint8) for number in (1, 2)}
    return dataset(directory, images, {number: ((number + 1) // 2, mask) for number, mask in truths()})


def seal(directory, dataset, source, model, precision, role, metrics, instances, predictions):
    write_json(directory / "instances.json", instances)
    write_json(directory / "predictions.json", predictions)
    write_json(
        directory / "subject.json",
        {"model": model, "precision": precision, "runtime": "openvino" if role == "student" else "torch", "role": role},
    )
    write_metrics(directory, metrics)
    contents = Contents(kind="evaluation", model=model, precision=precision)
    Card.seal(directory, contents, {"prepare": dataset, source: f"{model}{precision}".encode().hex().ljust(64, "0")})


def evaluation(directory, dataset, source, model, precision, role, shift, timed=True):
    """An evaluation whose masks are the truth moved to the right by ``shift`` pixels."""
    directory.mkdir(parents=True)
    instances, predictions = [], []
    for number, mask in truths():
        found = np.zeros_like(mask)
        found[:, shift:] = mask[:, : 80 - shift]
        ids = {"image_id": (number + 1) // 2, "annotation_id": number}
        value = iou(found, mask)
        instances.append(ids | {"area": int(mask.sum()), "box_iou": value, "click_iou": value})
        predictions.append(ids | {"box": masks.encode(found), "click": masks.encode(found)})
    areas = [i["area"] for i in instances]
    metrics = {"instances": 4.0, "size_mib": 30.0 - shift, "parameters": 7e6, "encoder_macs": 2e9}
    for prompt in ("box", "click"):
        metrics |= band_means(f"{prompt}_miou", [i[f"{prompt}_iou"] for i in instances], areas)
    if timed:
        metrics |= {"latency_ms": 80.0 - 9 * shift, "encoder_ms": 30.0, "decoder_ms": 9.0, "memory_mib": 100.0 - shift}
        write_json(directory / "latency.json", {"guarded": precision != "int8"})
    seal(directory, dataset, source, model, precision, role, metrics, instances, predictions)


def reseal(directory, baselines):
    """Add what trivial masks score to a teacher's evaluation."""
    card = Card.read(directory)
    write_json(directory / "baselines.json", baselines)
    Card.seal(directory, Contents(**card.model_dump(exclude={"digest", "parents"})), card.parents)


def refusal(directory, dataset, model, precision):
    """What `evaluate` leaves where `build_engine` refused the engine."""
    directory.mkdir(parents=True)
    found = Refusal(
        stage="build_engine",
        rule="build_engine.min_cosine",
        value=0.958918,
        limit=0.97,
        reason="the openvino engine is too far from the student in fp32: embedding_cosine is 0.958918, "
        "build_engine.min_cosine asks for 0.97. Use a higher precision, or keep layers out of it (quantize.keep).",
    )
    write_json(directory / "refusal.json", found.model_dump())
    contents = Contents(kind="refusal", model=model, precision=precision, refusal=found)
    Card.seal(directory, contents, {"prepare": dataset, "build_engine": "a" * 64})


def small_world(place):
    made = small_dataset(place / "prepare").digest
    evaluation(place / "evaluate_teacher", made, "teacher", "bundled", "fp32", "teacher", 0)
    reseal(place / "evaluate_teacher", {"filled_box": {"box_miou": 1.0}, "ellipse": {"box_miou": 0.75}})
    for precision, shift in SHADES.items():
        evaluation(place / "evaluate" / "nano" / precision, made, "build_engine", "nano", precision, "student", shift)
    return place


# model, precision, how wrong masks are, latency in ms, size in MiB, parameters
_MODELS = (
    ("bundled", "fp32", 0.02, 33.7, 34.2, 9.0e6),
    ("efficientvit_sam_nano", "fp32", 0.05, 12.0, 26.9, 6.8e6),
    ("efficientvit_sam_nano", "int8", 0.06, 8.89, 19.4, 6.8e6),
    ("tinysam_nano", "fp32", 0.07, 21.3, 22.1, 5.1e6),
    ("tinysam_nano", "int8", 0.09, 15.2, 16.6, 5.1e6),
    ("sam_lightening_nano", "fp32", 0.08, 17.8, 25.0, 6.1e6),
    ("sam_lightening_nano", "int8", 0.11, 10.4, 18.0, 6.1e6),
)


def rich_world(place, images=4):
    """Scenes, a teacher and three students in two precisions, with everything that can be measured."""
    rng = np.random.default_rng(0)
    painted = {number: scenes.render(rng, 192) for number in range(1, images + 1)}
    annotations = dict(enumerate(((n, mask) for n, scene in painted.items() for mask in scene.masks), start=1))
    made = dataset(place / "prepare", {n: scene.image for n, scene in painted.items()}, annotations).digest
    for model, precision, wrong, latency, size, parameters in _MODELS:
        teacher = model == "bundled"
        directory = place / "evaluate_teacher" if teacher else place / "evaluate" / model / precision
        directory.mkdir(parents=True)
        cost = {"latency_ms": latency, "encoder_ms": 0.7 * latency, "decoder_ms": 0.25 * latency, "size_mib": size}
        cost |= {"memory_mib": 3 * size, "parameters": parameters, "encoder_macs": 90 * parameters}
        write_json(directory / "latency.json", {"guarded": True})
        metrics, instances, predictions = _measured(rng, directory, annotations, wrong, None if teacher else 1 - wrong)
        source, role = ("teacher", "teacher") if teacher else ("build_engine", "student")
        seal(directory, made, source, model, precision, role, metrics | cost, instances, predictions)
        if precision == "int8":
            lowered = place / "quantize" / model / precision
            lowered.mkdir(parents=True)
            write_json(lowered / "sensitivity.json", sensitivity(np.random.default_rng(1), metrics["box_miou"]))
    with ThreadPoolExecutor(1) as pool:
        reseal(
            place / "evaluate_teacher",
            trivial_masks(coco.read(place / "prepare/validation/instances.json", min_area_px=1).photographs, pool),
        )
    refusal(place / "evaluate" / "tinysam_nano" / "w4a8", made, "tinysam_nano", "w4a8")
    return place


def sensitivity(rng, miou, layers=12):
    """A report as `quantize` writes it: later layers are noisier, the last one is suggested to be kept."""

    def figures(gain):
        return {"box_miou": miou + gain, "click_miou": miou - 0.1 + gain, "embedding_cosine": 0.98 + gain}

    noise = [40.0 - 2.5 * i + float(rng.normal()) for i in range(layers)]
    rows = [
        {"name": f"stage.{i // 4}.<layer{i}>", "snr_db": db, "accumulated_snr_db": db - i} for i, db in enumerate(noise)
    ]
    counts, edges = np.histogram(rng.normal(size=10_000) ** 3, 64)
    worst = {"name": rows[-1]["name"], "counts": counts.tolist(), "edges": edges.tolist()}
    return {
        "images": 4,
        "fp32": figures(0.015),
        "lowered": figures(0.0),
        "layers": rows,
        "groups": [{"name": f"stage.{i}", "layers": 4} | figures(0.002 * i - 0.001) for i in range(3)],
        "worst": [worst | {"range": 20.0, "beyond_range": 0.0123}],
        "suggested": {"keep": [rows[-1]["name"]]} | figures(0.01),
    }


def _measured(rng, directory, annotations, wrong, agreement):
    instances, predictions = [], []
    for number, (image, mask) in annotations.items():
        ids = {"image_id": image, "annotation_id": number}
        answers = {"box": _spoiled(rng, mask, wrong), "click": _spoiled(rng, mask, 2 * wrong)}
        scores = {prompt: iou(found, mask) for prompt, found in answers.items()}
        for prompt in CLICKS[1:]:
            scores[prompt] = 1 - (1 - scores["click"]) * (0.4 if "5" in prompt else 0.6) * (
                0.9 if "fed" in prompt else 1
            )
        instances.append(ids | {"area": int(mask.sum())} | {f"{p}_iou": float(v) for p, v in scores.items()})
        predictions.append(ids | {prompt: masks.encode(found) for prompt, found in answers.items()})
    areas = [i["area"] for i in instances]
    metrics = {"instances": float(len(instances))}
    for prompt in ("box", *CLICKS):
        metrics |= band_means(f"{prompt}_miou", [i[f"{prompt}_iou"] for i in instances], areas)
    for prompt in ("box", "click"):
        metrics |= {f"{prompt}_boundary_iou": 0.8 * metrics[f"{prompt}_miou"], f"{prompt}_calibration_error": wrong}
        metrics |= {} if agreement is None else {f"{prompt}_agreement": agreement}
    for part in ("", "_small", "_medium", "_large"):
        metrics[f"coco_vitdet_ap{part}"] = 0.6 * metrics.get(f"box_miou{part}", metrics["box_miou"])
    metrics["sginw_ap"] = 0.5 * metrics["box_miou"]
    for mode, seconds in (("dense", 1.8), ("hierarchical", 0.7)):
        name = f"everything_{mode}"
        metrics |= {
            f"{name}_ar100": 0.5 - wrong,
            f"{name}_ar1000": 0.6 - wrong,
            f"{name}_miou": 0.7 - wrong,
            f"{name}_masks": 17.5,
            f"{name}_s": seconds,
        }
    metrics["everything_miou"] = 0.99
    _write_extras(directory, annotations, predictions, wrong)
    return metrics, instances, predictions


def _write_extras(directory, annotations, predictions, wrong):
    centres = [0.05 + 0.1 * k for k in range(10)]
    bins = [{"predicted": c, "iou": max(0.0, c - wrong * (1 + c)), "count": k * k} for k, c in enumerate(centres)]
    write_json(directory / "calibration.json", {"box": bins, "click": bins})
    shown = []
    for image in (1, 2):
        records = [
            {"segmentation": p["box"], "area": int(annotations[p["annotation_id"]][1].sum()), "predicted_iou": 0.9}
            for p in predictions
            if p["image_id"] == image
        ]
        shown.append(
            {"image_id": image, "file_name": f"{image}.jpg", "modes": {"dense": records, "hierarchical": records[:-1]}}
        )
    write_json(directory / "everything.json", {"evaluated": 2, "images": shown})
    write_json(directory / "photographs.json", photographs(wrong))


def photographs(wrong):
    """Masks of the sample photographs: ellipses in the boxes, squares for everything mode."""
    answers = []
    for name, prompt, numbers in PROMPTS:
        x0, y0, x1, y1 = numbers if prompt == "box" else (*(n - 90 for n in numbers), *(n + 90 for n in numbers))
        box = (x0 - 60 * wrong, float(y0), x1 + 60 * wrong, float(y1))
        segmentation = masks.encode(ellipse(box, (427, 640)))
        answers.append({"file_name": name, "prompt": prompt, "numbers": list(numbers), "segmentation": segmentation})
    records = []
    for number in range(6):
        square = np.zeros((427, 640), bool)
        square[200:300, 100 * number : 100 * number + 90] = True
        records.append({"segmentation": masks.encode(square), "area": 9000, "predicted_iou": 0.9})
    shown = {"file_name": EVERYTHING, "mode": "hierarchical", "records": records}
    return {"prompts": answers, "everything": shown}


def _spoiled(rng, mask, wrong):
    """A mask as a model might give it: moved, grown or shrunk."""
    by = max(1, round(wrong * float(np.sqrt(mask.sum())) * rng.uniform(0.3, 1.7)))
    change = cv2.dilate if rng.random() < 0.5 else cv2.erode
    found = change(mask.astype(np.uint8), np.ones((by + 1, by + 1), np.uint8))
    return np.roll(found.astype(bool), int(rng.integers(-by, by + 1)), axis=int(rng.integers(2)))


def report(place, config):
    """The page of a world."""
    out = place / "out"
    out.mkdir()
    compare(
        config,
        prepare=place / "prepare",
        quantize=place / "quantize",
        evaluate_teacher=place / "evaluate_teacher",
        evaluate=place / "evaluate",
        out=out,
        log=silent,
    )
    return out / "report.html"


if __name__ == "__main__":
    report(rich_world(Path(sys.argv[1])), CompareConfig(title="SAM Distillery", pictures=3, extremes=2))
