"""Every student gives the same masks on every runtime, for images of any size and prompts of any number."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.bench.engines import Exported
from pipeline.models import STUDENTS, build
from pipeline.runtime import Predictor, load

SIZES = [(1, 1), (1, 4000), (3000, 4000), (4000, 3), (333, 640)]
RUNTIMES = ["onnxruntime", "openvino"]


def prompts(height, width, rng):
    """A box, clicks, both, and a box for each of 64 objects."""
    scale = np.array([width, height, width, height])
    many = np.sort(rng.uniform(size=(64, 2, 2)), axis=1).reshape(64, 4) * scale
    clicks = rng.uniform(size=(7, 2)) * scale[:2]
    return [
        {"box": np.array([0.0, 0.0, width, height])},
        {"point_coords": clicks, "point_labels": np.arange(7) % 2},
        {"point_coords": clicks[:1], "point_labels": np.ones(1), "box": many[0]},
        {"box": many},
    ]


def settled(sam):
    """With batch norms that have seen an image: fresh ones let XL1 grow beyond the range of fp32."""
    norms = [module for module in sam.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    noise = torch.randn(2, 3, sam.input_size, sam.input_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sam.train().image_encoder(noise)
    return sam.eval()


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_runtimes_agree_to_a_thousandth(student, tmp_path):
    sam = settled(build(student, seed=1))
    combinations = [(runtime, "fp32") for runtime in RUNTIMES]
    exported = Exported(sam, student, combinations, tmp_path)
    segmenters = {"torch": load(sam, threads=2)} | {
        runtime: exported.engine(runtime, "fp32", 2)[0] for runtime in RUNTIMES
    }
    rng = np.random.default_rng(0)
    for size in SIZES:
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        predictors = {name: Predictor(segmenter) for name, segmenter in segmenters.items()}
        for predictor in predictors.values():
            predictor.set_image(image)
        for prompt in prompts(*size, rng):
            small = size[0] * size[1] < 1e6 and prompt.get("box", np.zeros(4)).ndim == 1
            results = {}
            for name, predictor in predictors.items():
                # Masks of large images come from these logits by the same code for all runtimes.
                found = predictor.predict(**prompt, return_logits=small) if small else low_res(predictor, prompt)
                results[name] = found
            for name in RUNTIMES:
                for ours, true in zip(results[name], results["torch"], strict=True):
                    assert np.abs(ours - true).max() < 1e-3, (name, size)


def low_res(predictor, prompt):
    """Logits before they are brought to the image's size."""
    from pipeline.runtime.prompts import prepare

    segmenter = predictor.segmenter
    arrays = (prompt.get("point_coords"), prompt.get("point_labels"), prompt.get("box"), None)
    ready = prepare(*arrays, size=predictor.original_size, segmenter=segmenter)
    features = predictor.features
    assert features is not None
    parts = [
        segmenter.decode(features, ready.point_coords[i : i + 16], ready.point_labels[i : i + 16])
        for i in range(0, len(ready.point_coords), 16)
    ]
    return [torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True)]
