"""Every published file format loads: strict keys, equal weights, and outputs equal to the published code's."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT

from pipeline.core.artifact import Card, Contents, file_sha256
from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.decoder import decode
from pipeline.models.pretrained import Source, hugging_face, load_pretrained
from pipeline.models.sam import WEIGHTS, assemble, save_checkpoint
from tests.reference.published import PARITY, rebuilt_weight

NAME = "efficientvit_sam_nano"


def source(path):
    file = path / WEIGHTS if path.is_dir() else path
    return Source(checkpoint=str(path), sha256=file_sha256(file))


def load(path, sam=None, name=NAME):
    sam = sam or build(name, seed=1)
    return sam, load_pretrained(sam, name, source(path), "distill.x.recipe")


def same(sam, state):
    return all(torch.equal(sam.state_dict()[key], value) for key, value in state.items())


WRAPPED = {
    "as it is": lambda state: state,
    "in state_dict": lambda state: {"state_dict": state, "epoch": 2},
    "in model": lambda state: {"model": state},
    "of DDP": lambda state: {f"module.{key}": value for key, value in state.items()},
    "in half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_whole_model_is_loaded_from_every_wrapping(tmp_path, wrap):
    given = build(NAME, seed=7).state_dict()
    torch.save(wrap(given), tmp_path / "x.pt")
    sam, part = load(tmp_path / "x.pt")
    assert part == "whole"
    halves = wrap is WRAPPED["in half"]
    assert same(sam, {k: v.half().float() if halves and v.is_floating_point() else v for k, v in given.items()})
    assert all(v.dtype == torch.float32 for v in sam.state_dict().values() if v.is_floating_point())


@pytest.mark.parametrize("prefix", ["image_encoder.", ""])
def test_an_encoder_alone_leaves_the_decoder(tmp_path, prefix):
    given = build(NAME, seed=7)
    encoder = given.image_encoder.state_dict()
    torch.save({"state_dict": {prefix + key: value for key, value in encoder.items()}}, tmp_path / "x.pt")
    before = build(NAME, seed=1)
    sam, part = load(tmp_path / "x.pt")
    assert part == "image_encoder"
    assert all(torch.equal(sam.image_encoder.state_dict()[key], value) for key, value in encoder.items())
    assert all(torch.equal(v, before.mask_decoder.state_dict()[k]) for k, v in sam.mask_decoder.state_dict().items())


def test_safetensors_are_recognized_by_content_and_an_artifact_by_its_card(tmp_path):
    given = build(NAME, seed=7)
    save_file(given.state_dict(), tmp_path / "weights.bin")
    assert same(load(tmp_path / "weights.bin")[0], given.state_dict())
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    save_checkpoint(given, artifact)
    Card.seal(artifact, Contents(kind="checkpoint", model=NAME, precision="fp32"), {})
    assert same(load(artifact)[0], given.state_dict())
    with pytest.raises(
        InputError, match=r"artifact of kind 'checkpoint' of efficientvit_sam_nano, not .* tinysam_nano"
    ):
        load(artifact, build("tinysam_nano"), "tinysam_nano")


def test_a_model_of_hugging_face_computes_what_transformers_computes(tmp_path):
    """Weights, image and outputs of transformers 5.24's SamModel, at a size of two blocks (parity/README.md)."""
    shapes = json.loads((PARITY / "hugging_face_tiny.keys.json").read_text())
    expected = np.load(PARITY / "hugging_face_tiny.npz")
    save_file({key: rebuilt_weight(key, torch.empty(shape)) for key, shape in shapes.items()}, tmp_path / WEIGHTS)
    encoder = ImageEncoderViT(
        img_size=128, patch_size=16, embed_dim=64, depth=2, num_heads=2, mlp_ratio=2, out_chans=256, qkv_bias=True,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6), use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,),
    )  # fmt: skip
    sam, part = load(tmp_path, assemble(encoder, image_size=128, input_size=128, embedding_size=8))
    assert part == "whole"
    yy, xx = np.mgrid[0:128, 0:128].astype(np.float32)
    waves = [np.sin(xx / 7 + yy / 11), np.cos(xx / 5 - yy / 13), np.sin(xx * yy / 900)]
    sam.eval()
    with torch.inference_mode():
        embedding = sam.image_encoder(torch.from_numpy(np.stack(waves).astype(np.float32))[None])
        coords = torch.tensor([[[[60.0, 40.0], [90.0, 100.0], [0.0, 0.0]]]])
        logits, iou = decode(sam, embedding, coords, torch.tensor([[[1.0, 0.0, -1.0]]]))
    assert np.abs(embedding.numpy() - expected["embedding"]).max() < 1e-4
    assert np.abs(logits[0, 0, 1:].numpy() - expected["masks"]).max() < 1e-3
    assert np.abs(iou[0, 0, 1:].numpy() - expected["iou"]).max() < 1e-4


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_every_key_of_hugging_face_has_its_place_in_segment_anything(name):
    shapes = json.loads((PARITY / "hugging_face_sam_vit.keys.json").read_text())[name]
    with torch.device("meta"):
        given = hugging_face.renamed({key: torch.empty(shape) for key, shape in shapes.items()})
        own = build(name).state_dict()
    assert {key: value.shape for key, value in given.items()} == {key: value.shape for key, value in own.items()}


def spoiled(tmp_path, kind):
    state = build(NAME, seed=7).state_dict()
    path = tmp_path / "x.pt"
    if kind == "nan":
        state["image_encoder.norm.weight"][3] = float("nan")
    if kind == "other":
        state = build("tinysam_nano").state_dict()
    if kind == "extra":
        state["teacher.queue"] = torch.zeros(3)
    if kind == "shape":
        state["image_encoder.norm.weight"] = torch.zeros(7)
    if kind == "safetensors cut":
        save_file(state, path)
    else:
        torch.save(state, path)
    if "cut" in kind:
        path.write_bytes(path.read_bytes()[:-5000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"not finite \(image_encoder\.norm\.weight\): get an undamaged file"),
        ("other", r"does not hold the weights of this model: keys \d+ missing .*\d+ unknown"),
        ("extra", r"1 unknown \(first: teacher\.queue\)"),
        ("shape", r"1 of another shape or type \(first: image_encoder\.norm\.weight\)"),
        ("cut", "cannot be read as plain weights"),
        ("safetensors cut", "damaged safetensors file"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, kind, message):
    with pytest.raises(InputError, match=message) as caught:
        load(spoiled(tmp_path, kind))
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_in_one_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="holds no model.safetensors: name the file of the weights, as one file"):
        load_pretrained(build(NAME), NAME, Source(checkpoint=str(tmp_path), sha256="0" * 64), "teacher")
