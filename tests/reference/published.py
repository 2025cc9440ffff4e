"""The published models' weights, input and prompts, rebuilt as parity/README.md says, and their outputs."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from pipeline.models import build
from pipeline.models.decoder import decode
from pipeline.ops import geometry

PARITY = Path(__file__).parent / "parity"
PROMPTS = ("point1", "point2", "box")
SIZE = (333, 500)
POINTS, LABELS = [[120.0, 80.0], [300.0, 200.0]], [1.0, 0.0]
PADDING = ([[0.0, 0.0]], [-1.0])
BOX = [60.0, 40.0, 400.0, 260.0]


def rebuilt_weight(key, tensor):
    g = np.random.Generator(np.random.Philox(zlib.crc32(key.encode())))
    shape = tuple(tensor.shape)
    if key.endswith("running_var"):
        values = 0.5 + g.random(shape, np.float32)
    elif len(shape) >= 2:
        values = g.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
    else:
        values = 0.1 * g.standard_normal(shape, np.float32) + (1 if key.endswith("weight") else 0)
    return torch.from_numpy(np.asarray(values, np.float32))


def rebuilt(student):
    sam = build(student)
    state = {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else rebuilt_weight(key, value)
        for key, value in sam.state_dict().items()
    }
    sam.load_state_dict(state, strict=True)
    return sam.eval()


def photograph():
    yy, xx = np.mgrid[0 : SIZE[0], 0 : SIZE[1]].astype(np.float32)
    red = 127.5 + 127.5 * np.sin(xx / 37 + yy / 91)
    green = 127.5 + 127.5 * np.sin(xx / 53 - yy / 29)
    blue = 127.5 + 127.5 * np.cos(yy / 17) * np.sin(xx / 111)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)


def prompt(kind, side):
    if kind == "box":
        corners = geometry.boxes_to_frame(np.array(BOX), SIZE, side).reshape(2, 2)
        return torch.from_numpy(corners)[None, None], torch.tensor([[[2.0, 3.0]]])
    n = int(kind[-1])
    points = np.concatenate([geometry.points_to_frame(np.array(POINTS[:n]), SIZE, side), PADDING[0]])
    return torch.from_numpy(points.astype(np.float32))[None, None], torch.tensor([[[*LABELS[:n], *PADDING[1]]]])


def encoded(sam, published):
    """A model with rebuilt weights, its embedding of the photograph, and the published outputs."""
    with torch.inference_mode():
        embedding = sam.image_encoder(geometry.to_input(photograph(), sam.input_size)[None])
    return sam, embedding, np.load(PARITY / f"{published}.npz")


def check_keys(student, published):
    """Keys, shapes and types are the published ones, and load strictly."""
    expected = json.loads((PARITY / f"{published}.keys.json").read_text())
    with torch.device("meta"):
        sam = build(student)
    assert {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in sam.state_dict().items()} == expected
    state = {k: torch.empty(s, dtype=getattr(torch, d), device="meta") for k, (s, d) in expected.items()}
    sam.load_state_dict(state, strict=True, assign=True)


def check_embedding(embedding, outputs):
    assert embedding.shape == tuple(outputs["features_shape"])
    sampled = embedding.flatten()[torch.from_numpy(outputs["features_idx"])]
    np.testing.assert_allclose(sampled.numpy(), outputs["features_val"], rtol=0, atol=1e-4)
    channels = embedding[0].flatten(1)
    np.testing.assert_allclose(channels.mean(1), outputs["features_channel_mean"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(channels.std(1), outputs["features_channel_std"], rtol=0, atol=1e-3)


def check_masks(sam, embedding, outputs, kind):
    with torch.inference_mode():
        low_res, scores = decode(sam, embedding, *prompt(kind, sam.image_size))
        low_res, scores = low_res[:, 0, 1:], scores[0, 0, 1:]
        masks = geometry.masks_to_original(low_res, SIZE, sam.image_size)[0]
    np.testing.assert_allclose(scores.numpy(), outputs[f"{kind}_scores"], rtol=0, atol=1e-3)
    assert masks.shape == tuple(outputs[f"{kind}_masks_shape"])
    for name, logits in (("low_res", low_res), ("masks", masks)):
        sampled = logits.flatten()[torch.from_numpy(outputs[f"{kind}_{name}_idx"])]
        np.testing.assert_allclose(sampled.numpy(), outputs[f"{kind}_{name}"], rtol=0, atol=1e-3)
