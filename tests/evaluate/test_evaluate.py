import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipeline.core.artifact import Card, Contents, digest, write_json
from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.evaluate import EvaluateConfig, evaluate, evaluate_teacher, memory
from pipeline.evaluate.accuracy import evaluate_accuracy, read_teacher_masks
from pipeline.evaluate.cost import cost
from pipeline.evaluate.detections import DetectionsConfig, require_tracked
from pipeline.evaluate.images import Done, Run
from pipeline.evaluate.memory import measuring_memory
from pipeline.evaluate.prompting import PROMPTS
from pipeline.evaluate.validation import ValidationSet
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.ops import masks
from pipeline.ops.metrics import iou
from pipeline.runtime import Predictor

NANO = "efficientvit_sam_nano"


class BoxFiller:
    """A segmenter whose masks fill the box asked for, or nothing at all for clicks; image side 256, exact to 4 px."""

    image_size = input_size = 256
    embedding_size = 16

    def __init__(self):
        self.encoded = 0
        self.batches = []

    def encode(self, images):
        self.encoded += len(images)
        return torch.zeros(len(images), 256, 16, 16)

    def decode(self, image_embedding, point_coords, point_labels, mask_input=None):
        self.batches.append(len(point_coords))
        logits = torch.full((len(point_coords), 4, 64, 64), -1.0)
        for i, (points, labels) in enumerate(zip(point_coords, point_labels, strict=True)):
            corners = {
                int(label): (point / 4).round().int().tolist() for point, label in zip(points, labels, strict=True)
            }
            if 2 in corners:
                (x0, y0), (x1, y1) = corners[2], corners[3]
                logits[i, 2, y0:y1, x0:x1] = 1.0
        scores = torch.tensor([9.0, 0.1, 0.8, 0.2]).repeat(len(point_coords), 1)  # token 0 must not be chosen
        return logits, scores


def _dataset(directory, images):
    """A prepared validation split: per image its size and the boxes xyxy that its masks fill."""
    (directory / "validation" / "images").mkdir(parents=True)
    listed, annotations = [], []
    rng = np.random.default_rng(0)
    for number, ((height, width), boxes) in enumerate(images, start=1):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(directory / "validation" / "images" / f"{number}.jpg")
        listed.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for x0, y0, x1, y1 in boxes:
            mask = np.zeros((height, width), bool)
            mask[y0:y1, x0:x1] = True
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "segmentation": masks.encode(mask), "iscrowd": 0}
                | {"category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())}
            )
    categories = [{"id": 1, "name": "object"}]
    write_json(
        directory / "validation" / "instances.json",
        {"images": listed, "annotations": annotations, "categories": categories},
    )
    Card.seal(directory, Contents(kind="dataset"), {})
    return directory


@pytest.fixture
def dataset(tmp_path):
    boxes = [(8, 8, 40, 24), (0, 0, 256, 256), (100, 60, 196, 156), (252, 252, 256, 256), (16, 16, 48, 48)]
    return _dataset(tmp_path / "prepare", [((256, 256), boxes), ((256, 256), []), ((128, 256), [(4, 8, 60, 64)])])


def _scores(
    dataset, segmenter, prompts_batch=2, pictures=1, with_mask_input=False, kept=None, protocol="published", **more
):
    validation = ValidationSet(dataset / "validation")
    with ThreadPoolExecutor(2) as pool:
        run = Run(Predictor(segmenter), pool, prompts_batch, Ranks(), Done(kept))
        return evaluate_accuracy(
            run,
            validation,
            validation.photographs(protocol, 64),
            pictures=pictures,
            with_mask_input=with_mask_input,
            **more,
        )


@pytest.mark.parametrize("prompts_batch", [1, 2, 5, 64])
def test_every_instance_counts_exactly_once_and_every_image_is_encoded_once(dataset, prompts_batch):
    segmenter = BoxFiller()
    scores = _scores(dataset, segmenter, prompts_batch)
    assert Counter(s["annotation_id"] for s in scores.instances) == Counter(range(1, 7))
    assert scores.metrics()["instances"] == 6
    assert segmenter.encoded == 2  # the image without instances is not
    assert sum(segmenter.batches) == 6 * 6  # a box and five rounds of clicks
    assert max(segmenter.batches) <= prompts_batch


def test_of_three_masks_the_one_rated_best_counts(dataset):
    scores = _scores(dataset, BoxFiller())
    by_id = {s["annotation_id"]: s for s in scores.instances}
    assert by_id[2]["box_iou"] == 1.0
    assert all(s["box_iou"] > 0.7 for s in scores.instances)  # also at the border, and 4 x 4 pixels
    assert {s["box_predicted_iou"] for s in scores.instances} == {0.8}


def test_empty_predictions_score_zero(dataset):
    scores = _scores(dataset, BoxFiller())
    assert {s["click_iou"] for s in scores.instances} == {0.0}
    assert scores.metrics()["click_miou"] == 0.0


def test_means_are_over_instances_by_bands_with_borders_in_both(dataset):
    scores = _scores(dataset, BoxFiller())
    value = {s["annotation_id"]: s["box_iou"] for s in scores.instances}
    metrics = scores.metrics()
    assert metrics["box_miou"] == pytest.approx(np.mean(list(value.values())))
    # areas: 512, 65536, 9216 = 96^2, 16, 1024 = 32^2, 3136
    assert metrics["box_miou_small"] == pytest.approx(np.mean([value[i] for i in (1, 4, 5)]))
    assert metrics["box_miou_medium"] == pytest.approx(np.mean([value[i] for i in (3, 5, 6)]))
    assert metrics["box_miou_large"] == pytest.approx(np.mean([value[i] for i in (2, 3)]))


def test_kept_masks_are_those_that_were_scored(dataset):
    scores = _scores(dataset, BoxFiller(), pictures=1)
    assert [p["annotation_id"] for p in scores.predictions] == [1, 2, 3, 4, 5]
    truths = {
        i.id: masks.decode(i.rle) for p in ValidationSet(dataset / "validation").photographs() for i in p.instances
    }
    by_id = {s["annotation_id"]: s for s in scores.instances}
    for kept in scores.predictions:
        found = iou(masks.decode(kept["box"]), truths[kept["annotation_id"]])
        assert found == by_id[kept["annotation_id"]]["box_iou"]


def test_a_one_pixel_instance_is_asked_for_and_scored(tmp_path):
    dataset = _dataset(tmp_path / "prepare", [((64, 64), [(63, 0, 64, 1)])])
    (score,) = _scores(dataset, BoxFiller()).instances
    assert score["area"] == 1
    assert 0.0 <= score["box_iou"] <= 1.0


def test_crowd_regions_count_as_published_and_not_in_ours_and_categories_may_have_none(dataset):
    path = dataset / "validation" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["categories"].append({"id": 9, "name": "never seen"})
    write_json(path, content)
    assert Counter(s["annotation_id"] for s in _scores(dataset, BoxFiller()).instances) == Counter(range(1, 7))
    ours = _scores(dataset, BoxFiller(), protocol="ours").instances
    assert [s["annotation_id"] for s in ours] == [2, 3, 5, 6]  # 1 is a crowd, 4 has 16 pixels


def test_published_boxes_and_areas_are_the_annotations_own(dataset):
    path = dataset / "validation" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"bbox": [16.0, 8.0, 8.0, 8.0], "area": 99.5}
    write_json(path, content)
    published, ours = (_scores(dataset, BoxFiller(), protocol=p).instances[0] for p in ("published", "ours"))
    assert (published["area"], ours["area"]) == (99.5, 512)
    assert published["box_iou"] == pytest.approx(64 / 512, abs=0.02)
    assert ours["box_iou"] > 0.98
    content["annotations"][0]["area"] = 0.5
    write_json(path, content)
    assert _scores(dataset, BoxFiller()).instances[0]["annotation_id"] == 2  # below one pixel


def test_an_id_that_occurs_twice_is_refused(dataset):
    path = dataset / "validation" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["id"] = 1
    write_json(path, content)
    with pytest.raises(InputError, match=r"instances\.json: annotation id 1 occurs 2 times"):
        ValidationSet(dataset / "validation").photographs()


def test_500_instances_of_one_image_are_each_counted_once(tmp_path):
    boxes = [(x, y, x + 8, y + 8) for y in range(0, 200, 10) for x in range(0, 250, 10)]
    dataset = _dataset(tmp_path / "prepare", [((256, 256), boxes)])
    segmenter = BoxFiller()
    scores = _scores(dataset, segmenter, prompts_batch=64)
    assert Counter(s["annotation_id"] for s in scores.instances) == Counter(range(1, 501))
    assert segmenter.encoded == 1
    assert sum(segmenter.batches) == 6 * 500


def test_masks_of_whole_images_and_of_borders_have_boundaries_and_clicks(tmp_path):
    boxes = [(0, 0, 64, 64), (0, 0, 1, 64), (63, 0, 64, 64), (0, 63, 64, 64), (0, 0, 1, 1)]
    dataset = _dataset(tmp_path / "prepare", [((64, 64), boxes)])
    for score in _scores(dataset, BoxFiller(), with_mask_input=True).instances:
        assert all(0 <= score[f"{p}_iou"] <= 1 for p in PROMPTS)
        assert 0 <= score["box_boundary_iou"] <= 1


def test_a_model_that_predicts_no_number_is_refused(dataset):
    class Broken(BoxFiller):
        def decode(self, *arguments):
            logits, scores = super().decode(*arguments)
            return logits, scores * float("nan")

    with pytest.raises(InputError, match="predicts an IoU of nan: its weights are damaged"):
        _scores(dataset, Broken())


def test_agreement_with_itself_is_1_and_a_missing_mask_is_refused(dataset, tmp_path):
    write_json(tmp_path / "masks.json", _scores(dataset, BoxFiller(), keep_all=True).predictions)
    teacher = read_teacher_masks(tmp_path / "masks.json")
    assert len(teacher) == 6
    metrics = _scores(dataset, BoxFiller(), teacher=teacher).metrics()
    assert metrics["box_agreement"] == 1
    assert metrics["click_agreement"] == 0  # of two empty masks, as pycocotools has it
    del teacher[3]
    with pytest.raises(InputError, match="teacher's masks lack annotation 3"):
        _scores(dataset, BoxFiller(), teacher=teacher)


def test_masks_fed_back_are_asked_for_beside_the_others(dataset):
    segmenter = BoxFiller()
    metrics = _scores(dataset, segmenter, with_mask_input=True).metrics()
    assert sum(segmenter.batches) == 10 * 6
    for prompt in PROMPTS:
        assert f"{prompt}_miou" in metrics
        assert f"{prompt}_miou_small" in metrics
    assert metrics["box_calibration_error"] == pytest.approx(abs(0.8 - metrics["box_miou"]))


def test_a_broken_off_evaluation_does_only_what_is_left_and_has_the_same_figures(dataset, tmp_path):
    class Breaking(BoxFiller):
        def encode(self, images):
            if self.encoded == 1:
                raise KeyboardInterrupt
            return super().encode(images)

    whole = _scores(dataset, BoxFiller(), pictures=5)
    with pytest.raises(KeyboardInterrupt):
        _scores(dataset, Breaking(), pictures=5, kept=tmp_path / "kept")
    segmenter = BoxFiller()
    assert _scores(dataset, segmenter, pictures=5, kept=tmp_path / "kept") == whole
    assert segmenter.encoded == 1


def test_a_split_without_instances_is_refused(tmp_path):
    dataset = _dataset(tmp_path / "prepare", [((64, 64), [])])
    with pytest.raises(InputError, match=r"instances\.json has no instance"):
        ValidationSet(dataset / "validation").photographs()


@pytest.mark.parametrize("damage", ["missing", "truncated", "other size"])
def test_a_bad_image_is_named_with_a_remedy(dataset, damage):
    path = dataset / "validation" / "images" / "1.jpg"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:400])
    else:
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(InputError, match=r"1\.jpg.*dvc repro"):
        _scores(dataset, BoxFiller())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(build(NANO), directory)
    Card.seal(directory, Contents(kind="checkpoint", model=NANO, precision="fp32"), {})
    return directory


def _config(runs=0):
    latency = {"warmup": 0, "runs": runs, "max_foreign_load": 1.0, "batch": 2, "threads": 1}
    protocols = {"feed_back": True, "detections": {}, "sginw": None, "everything": None}
    return EvaluateConfig.model_validate(
        {"prompts_batch": 8, "pictures": 1, "latency": latency, "data": "/"} | protocols
    )


def _evaluate_teacher(dataset, checkpoint, out, runs=0):
    out.mkdir()
    contents = evaluate_teacher(_config(runs), prepare=dataset, teacher=checkpoint, out=out, log=silent)
    contents.remove_scratch()
    return contents


def test_an_untimed_evaluation_repeats_byte_for_byte(dataset, checkpoint, tmp_path):
    contents = [_evaluate_teacher(dataset, checkpoint, tmp_path / name) for name in ("a", "b")]
    expected = Contents(kind="evaluation", model=NANO, precision="fp32").model_dump()
    assert contents[0].model_dump() == contents[1].model_dump() == expected
    assert not [path for each in contents for path in each.scratch if path.exists()]
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert not [name for name in metrics if name.endswith("_ms") or name == "memory_mib"]
    assert not (tmp_path / "a" / "latency.json").exists()
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "a").iterdir())


def test_masks_of_the_sample_photographs_are_stored_unless_disabled(dataset, checkpoint, tmp_path):
    _evaluate_teacher(dataset, checkpoint, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "photographs.json").read_text())
    assert [(answer["file_name"], answer["prompt"]) for answer in stored["prompts"]] == [
        ("flower.jpg", "click"),
        ("flower.jpg", "box"),
        ("china.jpg", "box"),
    ]
    assert all(answer["segmentation"]["size"] == [427, 640] for answer in stored["prompts"])
    assert "everything" not in stored  # evaluate.everything is null
    (tmp_path / "none").mkdir()
    config = _config().model_copy(update={"photographs": False})
    evaluate_teacher(config, prepare=dataset, teacher=checkpoint, out=tmp_path / "none", log=silent)
    assert not (tmp_path / "none" / "photographs.json").exists()


def test_cost_and_size_are_the_models(dataset, checkpoint, tmp_path):
    _evaluate_teacher(dataset, checkpoint, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    sam = build(NANO)
    assert metrics["parameters"] == sum(p.numel() for p in sam.parameters())
    assert metrics["size_mib"] == (checkpoint / "model.safetensors").stat().st_size / 2**20
    assert metrics["encoder_macs"] > metrics["decoder_macs_per_prompt"] > 0


def test_cost_is_that_of_the_options_on_the_card():
    dense = {"attention": [[[256, 1]]] * 4}
    cards = [Card(kind="engine", model="sam_lightening_nano", options=o, digest="", parents={}) for o in ({}, dense)]
    assert cost(cards[0])["encoder_macs"] < cost(cards[1])["encoder_macs"]


def test_a_timed_evaluation_writes_all_parts(dataset, checkpoint, tmp_path):
    _evaluate_teacher(dataset, checkpoint, tmp_path / "out", runs=2)
    latency = json.loads((tmp_path / "out" / "latency.json").read_text())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for part, name in (("encoder", "encoder_ms"), ("decoder", "decoder_ms"), ("end_to_end", "latency_ms")):
        assert latency[part]["samples"] >= 2
        assert metrics[name] == latency[part]["median_ms"] > 0
    assert json.loads((tmp_path / "out" / "memory.json").read_text())["memory_mib"] == metrics["memory_mib"]
    weights_mib = (checkpoint / "model.safetensors").stat().st_size / 2**20
    assert metrics["memory_mib"] > 0.5 * weights_mib


def test_a_failing_measurement_of_memory_says_why(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROBE", "pipeline.absent")
    picture = dataset / "validation" / "images" / "1.jpg"
    with (
        measuring_memory(tmp_path / "absent", picture, (0.0, 0.0, 9.0, 9.0), threads=1) as result,
        pytest.raises(RuntimeError, match=r"No module named pipeline\.absent"),
    ):
        result()


def test_a_measurement_of_memory_ends_with_what_it_is_beside(dataset, checkpoint):
    picture = dataset / "validation" / "images" / "1.jpg"
    with measuring_memory(checkpoint, picture, (0.0, 0.0, 9.0, 9.0), threads=1):
        probes = [p for p in psutil.Process().children() if "pipeline.evaluate.probe" in p.cmdline()]
        assert len(probes) == 1
    assert not probes[0].is_running()


def test_another_students_engine_is_refused(dataset, checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"holds efficientvit_sam_nano fp32, not efficientvit_sam_nano int8"):
        evaluate(
            _config(),
            prepare=dataset,
            build_engine=checkpoint,
            evaluate_teacher=checkpoint,
            student=NANO,
            precision="int8",
            out=tmp_path,
            log=silent,
        )


@pytest.mark.parametrize(
    ("data", "results", "refused"),
    [
        ("data", "data/boxes.json", False),
        ("data", "other/boxes.json", True),
        ("data", "data/../boxes.json", True),
    ],
)
def test_a_results_file_that_dvc_does_not_watch_is_refused(data, results, refused):
    boxes = DetectionsConfig(truth="data/truth.json", results=results, images=["images"], lvis=False)
    with pytest.raises(InputError, match=r"not in evaluate\.data") if refused else nullcontext():
        require_tracked(data, {"boxes": boxes}, None)
