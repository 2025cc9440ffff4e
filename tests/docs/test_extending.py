"""The modules that the how-to pages have the reader write do what the pages say."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.distributed import Ranks
from pipeline.evaluate.images import Done, Run
from pipeline.evaluate.validation import ValidationSet
from pipeline.ops import masks
from pipeline.quantize.calibration import CalibrationData
from pipeline.runtime import Predictor
from tests.docs.pages import ROOT, blocks
from tests.evaluate.test_evaluate import BoxFiller, dataset  # noqa: F401 - a fixture
from tests.quantize.test_quantize import CONFIG, Pictures, encoder, small  # noqa: F401 - fixtures


def written(title):
    """The module of a page, by the file it has the reader write."""
    (block,) = [block for block in blocks() if block.title == title]
    names = {"__name__": "written"}
    exec(compile(block.body, title, "exec"), names)
    return names


def test_the_student_gives_an_embedding_of_the_teachers_shape():
    sam = written("pipeline/models/plain_sam.py")["plain_sam_nano"]().eval()
    with torch.inference_mode():
        assert sam.image_encoder(torch.zeros(1, 3, 256, 256)).shape == (1, 256, 16, 16)
    parameters = sum(p.numel() for p in sam.image_encoder.parameters())
    assert 2e6 < parameters < 3e6


def test_the_precision_replaces_an_encoder_and_stays_near_it(small, encoder, tmp_path):  # noqa: F811
    path = tmp_path / "encoder.onnx"
    path.write_bytes(encoder.read_bytes())
    lower = written("pipeline/quantize/bf16_weights.py")["bf16_weights"]
    figures = lower(CONFIG, path, CalibrationData(CONFIG, small, Pictures()))
    assert figures["embedding_cosine"] > 0.999
    assert path.read_bytes() != encoder.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]


def test_the_source_lists_images_with_the_objects_of_their_pngs(tmp_path):
    rng = np.random.default_rng(0)
    values = np.zeros((40, 60), np.uint8)
    values[5:20, 5:20], values[22:38, 30:50], values[0, 0] = 1, 7, 9
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.jpg")
        Image.fromarray(values).save(tmp_path / "masks" / f"{i}.png")
    items = written("pipeline/prepare/instance_pngs.py")["items"](tmp_path / "images", tmp_path / "masks", 64, 95)
    samples = [item.prepare() for item in items]
    assert [sample.packed.key for sample in samples] == ["0", "1", "2"]
    assert [sample.tiny for sample in samples] == [1, 1, 1]
    areas = [annotation["area"] for annotation in samples[0].packed.record["annotations"]]
    assert areas == [225, 320]


def test_the_protocol_scores_less_than_boxes_that_fit(dataset):  # noqa: F811
    names = written("pipeline/evaluate/loose_boxes.py")
    validation = ValidationSet(dataset / "validation")
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        run = Run(Predictor(BoxFiller()), pool, 2, Ranks(), Done(None))
        figures = names["evaluate_loose_boxes"](
            run, validation, validation.photographs(), names["LooseBoxesConfig"](share=0.2)
        )
    instances = [instance for photograph in validation.photographs() for instance in photograph.instances]
    assert 0 < figures["loose_box_miou"] < 1
    assert any(masks.area(instance.rle) < 32**2 for instance in instances) == ("loose_box_miou_small" in figures)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/evaluate/__init__.py", "            metrics = _detections(config, run, out)\n"),
        ("pipeline/evaluate/__init__.py", "class EvaluateConfig(Config):\n"),
        ("pipeline/prepare/files.py", "    if isinstance(source, Folder):\n"),
        ("pipeline/prepare/sources.py", "Source = Annotated[Procedural | Coco | Folder | Sa1b"),
        ("pipeline/quantize/int8.py", "CALIBRATORS: "),
        ("pipeline/quantize/precisions.py", "PRECISIONS: "),
        ("pipeline/models/students.py", "STUDENTS: "),
        ("tests/quantize/test_precisions.py", "COSINES = "),
        ("tests/quantize/test_students.py", "OPTIONS = "),
        ("tests/models/test_students.py", "def test_every_family_has_a_nano_of_256_pixels_and_16_cells"),
        ("pipeline/compare/measures.py", "def sections("),
        ("pipeline/ops/metrics.py", "_LOWER_IS_BETTER = "),
    ],
)
def test_the_pages_name_places_that_there_are(path, line):
    """If this fails, the how-to pages describe code that has changed: correct them too."""
    assert line in (ROOT / path).read_text()
