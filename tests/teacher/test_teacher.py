import json

import pytest
import torch

from pipeline.core.artifact import file_sha256
from pipeline.core.config import section
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.models import build
from pipeline.models.sam import WEIGHTS
from pipeline.models.students import load_checkpoint
from pipeline.teacher import BUNDLED, TeacherConfig, teacher


def run(out, **changes):
    settings = {"name": "bundled", "checkpoint": None, "sha256": None, "store": str(out.parent / "store")} | changes
    out.mkdir()
    return teacher(section({"teacher": settings}, "teacher", TeacherConfig), out=out, log=silent)


def test_the_bundled_teacher_is_there_whole_in_single_precision(tmp_path):
    from pipeline.core.artifact import Card

    contents = run(tmp_path / "out")
    Card.seal(tmp_path / "out", contents, {})
    assert (contents.kind, contents.model, contents.precision) == ("checkpoint", "bundled", "fp32")
    sam = load_checkpoint(tmp_path / "out")
    state = sam.state_dict()
    assert all(value.dtype in (torch.float32, torch.int64) and value.isfinite().all() for value in state.values())
    fresh = build("bundled").state_dict()
    assert not torch.equal(state["mask_decoder.iou_token.weight"], fresh["mask_decoder.iou_token.weight"])
    parameters = sum(p.numel() for p in sam.parameters())
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == {"parameters": parameters}


def test_bundled_weights_that_are_gone_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.teacher.BUNDLED", {"bundled": tmp_path / "bundled"})
    with pytest.raises(InputError, match=r"bundled/model\.safetensors does not exist"):
        run(tmp_path / "out")
    assert (BUNDLED["bundled"] / WEIGHTS).is_file()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A whole ViT-B as Meta publishes it, but with weights nobody trained."""
    path = tmp_path_factory.mktemp("official") / "sam_vit_b.pth"
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build("vit_b").state_dict().items()}
    torch.save({key: torch.full(shape, 0.01) for key, shape in shapes.items()}, path)
    return path


def test_an_official_checkpoint_becomes_a_teacher_with_its_weights(official, tmp_path):
    contents = run(tmp_path / "out", name="vit_b", checkpoint=str(official), sha256=file_sha256(official))
    assert (contents.model, contents.precision) == ("vit_b", "fp32")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / WEIGHTS, framework="pt") as weights:
        assert len(list(weights.keys())) == len(torch.load(official, mmap=True, weights_only=True))
        for key in ("image_encoder.pos_embed", "mask_decoder.iou_token.weight"):
            assert (weights.get_tensor(key) == 0.01).all()


def test_a_checkpoint_of_another_model_is_told_by_its_keys(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(2), "backbone.weight": torch.zeros(2)}, path)
    message = (
        r"other\.pth does not hold the weights of this model: keys \d+ missing .*1 unknown \(first: backbone\.weight"
    )
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "out", name="vit_b", checkpoint=str(path), sha256=file_sha256(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_b"}, "vit_b needs `checkpoint`"),
        ({"name": "vit_b", "checkpoint": "sam.pth"}, "vit_b needs `checkpoint`.*`sha256`"),
        ({"name": "vit_h", "checkpoint": "http://127.0.0.1:1/sam.pth"}, "vit_h needs .*`sha256`"),
        ({"checkpoint": "sam.pth", "sha256": "0" * 64}, "a bundled teacher has no checkpoint"),
        ({"name": "vit_b", "checkpoint": "gone.pth", "sha256": "0" * 64}, r"gone\.pth does not exist"),
        ({"name": "vit_g"}, "'name' is 'vit_g'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **changes)


def test_what_is_wrong_with_a_checkpoint_is_told_before_a_large_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.teacher.build", lambda name: pytest.fail("built"))
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        run(tmp_path / "out", name="vit_h", checkpoint="gone.pth", sha256="0" * 64)
