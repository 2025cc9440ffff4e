"""int8 of the published architectures, with weights of real magnitude (tests/reference): size and agreement."""

import numpy as np
import onnx
import pytest

from pipeline.bench.engines import scenes
from pipeline.export.form import save
from pipeline.export.sam import export_encoder
from pipeline.geometry import to_input
from pipeline.quantize.calibration import Material
from pipeline.quantize.int8 import find_scales
from pipeline.quantize.layers import chosen_layers
from pipeline.quantize.qdq import write_qdq
from pipeline.runtime.onnxruntime import open_session
from tests.quantize.test_quantize import CONFIG
from tests.reference.published import photograph, rebuilt


@pytest.mark.slow
@pytest.mark.parametrize("student", ["efficientvit_sam_l0", "efficientvit_sam_xl0"])
def test_int8_of_true_sizes_keeps_the_embedding(student, tmp_path):
    sam = rebuilt(student)
    config = CONFIG.model_copy(update={"calibration_images": 4, "holdout_images": 2})
    path, lowered = tmp_path / "encoder.onnx", tmp_path / "lowered.onnx"
    export_encoder(sam, path, opset=18, tolerance=1.0)
    material = Material(config, sam, scenes(tmp_path / "scenes", "calibration", 6, sam.input_size))
    model = onnx.load(path)
    chosen = chosen_layers(model, attention=False, keep=[])
    save(write_qdq(model, chosen, find_scales(config, model, chosen, material, 8, 8)), lowered)
    assert lowered.stat().st_size <= 0.28 * path.stat().st_size
    pictures = [material.feeds(i) for i in material.held_out]
    pictures.append({"image": to_input(photograph(), sam.input_size)[None].numpy()})
    sessions = [open_session(file) for file in (path, lowered)]
    for feeds in pictures:
        a, b = (session.run(None, feeds)[0].ravel() for session in sessions)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.995
