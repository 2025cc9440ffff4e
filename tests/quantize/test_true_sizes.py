"""int8 of the published architectures, with weights of real magnitude (tests/reference): size and agreement."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from pipeline.bench.engines import scenes
from pipeline.export.form import save
from pipeline.export.sam import export_encoder
from pipeline.geometry import to_input
from pipeline.quantize.calibration import Material
from pipeline.quantize.int8 import find_scales
from pipeline.quantize.layers import chosen_layers
from pipeline.quantize.qdq import Widths, write_qdq
from pipeline.runtime.onnxruntime import open_session
from tests.quantize.test_quantize import CONFIG
from tests.reference.published import photograph, rebuilt

AS_IS = {"calibration": "max", "percentile": 99.99, "keep": []}
PRESET = yaml.safe_load((Path(__file__).parents[2] / "presets/tinysam_sa1b.yaml").read_text())["quantize"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "settings", "size"),
    [("efficientvit_sam_l0", AS_IS, 0.28), ("efficientvit_sam_xl0", AS_IS, 0.28), ("tinysam", PRESET, 0.32)],
)
def test_int8_of_true_sizes_keeps_the_embedding(student, settings, size, tmp_path):
    sam = rebuilt(student)
    changes = {name: settings[name] for name in AS_IS}
    config = CONFIG.model_copy(update=changes | {"calibration_images": 4, "holdout_images": 2})
    path, lowered = tmp_path / "encoder.onnx", tmp_path / "lowered.onnx"
    export_encoder(sam, path, opset=18, tolerance=1.0)
    material = Material(config, sam, scenes(tmp_path / "scenes", "calibration", 6, sam.input_size))
    model = onnx.load(path)
    chosen = chosen_layers(model, attention=False, keep=config.keep)
    save(write_qdq(model, chosen, find_scales(config, model, chosen, material, Widths(reduce_range=True))), lowered)
    assert lowered.stat().st_size <= size * path.stat().st_size
    pictures = [material.feeds(i) for i in material.held_out]
    pictures.append({"image": to_input(photograph(), sam.input_size)[None].numpy()})
    sessions = [open_session(file) for file in (path, lowered)]
    for feeds in pictures:
        a, b = (session.run(None, feeds)[0].ravel() for session in sessions)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.995
