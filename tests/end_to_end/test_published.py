"""Published checkpoints go from their files to the leaderboard, with figures on a COCO and an LVIS set.

Weights are random, in the published formats. Training data is in SA-1B's format, so training and evaluation data are of
different sources.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.artifact import file_sha256
from pipeline.core.log import silent
from pipeline.data import scenes
from pipeline.distill import DistillConfig, student_of
from pipeline.models import build
from pipeline.models.pretrained import Source
from pipeline.ops import masks
from pipeline.prepare import PrepareConfig, prepare
from pipeline.stages import STAGES

SIDE = 96


def annotated(directory, seed, images, lvis=False):
    """Scenes and their json as COCO or LVIS v1 has it: areas of the annotations, a crowd region."""
    rng = np.random.default_rng(seed)
    listed, annotations = [], []
    (directory / "val2017").mkdir(parents=True)
    for number in range(1, images + 1):
        scene = scenes.render(rng, SIDE)
        name = f"{seed:03d}{number:09d}.png"
        Image.fromarray(scene.image).save(directory / "val2017" / name)
        image = {"id": 10 * seed + number, "height": SIDE, "width": SIDE}
        image |= {"coco_url": f"http://images.example.org/val2017/{name}"} if lvis else {"file_name": name}
        listed.append(image | ({"neg_category_ids": [], "not_exhaustive_category_ids": []} if lvis else {}))
        for mask in scene.masks:
            if mask.any():
                x0, y0, x1, y1 = masks.box(mask)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image["id"], "category_id": 1 + len(annotations) % 2}
                    | {"segmentation": masks.encode(mask), "bbox": [x0, y0, x1 - x0, y1 - y0]}
                    | {"area": float(mask.sum()) - 0.5}
                )
    if not lvis:
        annotations[0]["iscrowd"] = 1
    categories = [{"id": i, "name": str(i)} | ({"frequency": "f"} if lvis else {}) for i in (1, 2)]
    path = directory / "annotations.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    return len(annotations)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Tars in SA-1B's format, a COCO and an LVIS set, and the parameters of a run that trains nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_DISTILLERY_STORE", str(tmp_path / "store"))
    rendered = {"kind": "procedural", "side_px": SIDE, "train": 4, "calibration": 1, "validation": 1, "seed": 3}
    (tmp_path / "made").mkdir()
    prepare(PrepareConfig(data=".", shard_images=4, source=rendered), out=tmp_path / "made", log=silent)
    (tmp_path / "made/train").rename(tmp_path / "data")
    counts = {"coco": annotated(tmp_path / "data/coco", 1, 3), "lvis": annotated(tmp_path / "data/lvis", 2, 2, True)}
    sets = {
        "coco": {"annotations": "coco/annotations.json", "images": "coco/val2017"},
        "lvis": {"annotations": "lvis/annotations.json", "images": "lvis"},
    }
    source = {"kind": "sa1b", "train_images": 0, "calibration_images": 3, "validation": sets, "min_area_px": 1}
    return counts, {
        "precisions": ["fp32", "int8"],
        "prepare": {"data": "data", "source": source},
        "teacher": {"name": "bundled"},
        "embed": None,
        "export": {},
        "quantize": {"calibration_images": 2, "holdout_images": 1, "min_cosine": 0.0, "sensitivity_images": 0},
        "build_engine": {"min_cosine": 0.0, "min_mask_agreement": 0.0, "threads": 1},
        "evaluate": {"data": "data", "feed_back": False, "everything": None, "latency": {"warmup": 0, "runs": 0}},
        "compare": {},
        "promote": {},
    }


def run(params):
    for stage in STAGES:
        for keys in stage.repetitions(params):
            stage(stage.config(params, keys), keys, silent)


FORMATS = {
    "a whole model of EfficientViT-SAM": ("efficientvit_sam_nano", lambda sam: {"state_dict": sam.state_dict()}),
    "an encoder of its first stage": ("efficientvit_sam_nano", lambda sam: sam.image_encoder.state_dict()),
    "a whole model of TinySAM": ("tinysam_nano", lambda sam: {"model": sam.state_dict()}),
    "a whole model of EdgeSAM": ("edge_sam_nano", lambda sam: sam.state_dict()),
}


@pytest.mark.parametrize(
    "form", [pytest.param(name, marks=[] if number == 0 else pytest.mark.slow) for number, name in enumerate(FORMATS)]
)
def test_a_published_checkpoint_goes_from_its_file_to_the_leaderboard(world, tmp_path, form):
    counts, params = world
    student, wrapped = FORMATS[form]
    weights = build(student, seed=11)
    torch.save(wrapped(weights), tmp_path / "published.pt")
    recipe = {"kind": "pretrained", "checkpoint": "published.pt", "sha256": file_sha256(tmp_path / "published.pt")}
    params |= {"students": [student], "distill": {student: {"recipe": recipe}}, "align": {student: None}}
    run(params)

    rows = json.loads((tmp_path / "artifacts/compare/leaderboard.json").read_text())
    assert [(row["model"], row["precision"]) for row in rows[:1]] == [("bundled", "fp32")]
    assert {(row["model"], row["precision"]) for row in rows if row["role"] == "student"} == {
        (student, "fp32"),
        (student, "int8"),
    }
    for row in rows:
        if row["role"] != "baseline":
            assert all(0 <= row[name] <= 1 for name in ("box_miou", "click_miou", "lvis_box_miou", "lvis_click5_miou"))
            assert {prefix: data["instances"] for prefix, data in row["datasets"].items()} == {
                "": counts["coco"],
                "lvis_": counts["lvis"],
            }
            assert [data["name"] for data in row["datasets"].values()] == ["coco", "lvis"]
    filled = next(row for row in rows if row["model"] == "filled box")
    assert 0.3 < filled["box_miou"] < 1
    assert 0.3 < filled["lvis_box_miou"] < 1
    page = (tmp_path / "artifacts/compare/report.html").read_text()
    assert "mIoU on coco" in page
    assert "mIoU on lvis" in page


def test_initial_weights_start_a_recipe_and_the_whole_model_is_taken(world, tmp_path):
    _, params = world
    for stage in STAGES[:2]:
        stage(stage.config(params, {}), {}, silent)
    weights = build("efficientvit_sam_nano", seed=11)
    torch.save(weights.state_dict(), tmp_path / "init.pt")
    init = Source(checkpoint="init.pt", sha256=file_sha256(tmp_path / "init.pt"))
    started = student_of(tmp_path / "artifacts/teacher", "efficientvit_sam_nano", 0, {}, init)
    assert all(torch.equal(value, started.state_dict()[key]) for key, value in weights.state_dict().items())
    with pytest.raises(ValueError, match="a pretrained recipe trains nothing"):
        DistillConfig.model_validate({"recipe": {"kind": "pretrained", **init.model_dump()}, "init": init.model_dump()})
