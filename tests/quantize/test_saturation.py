"""int8 files for processors compute the same with and without VNNI: `pipeline.ops.cpu.EXACT_FACTOR`."""

import numpy as np
import onnx
import pytest

from pipeline.bench.engines import scenes
from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError, Refused
from pipeline.export.form import save
from pipeline.export.sam import export_encoder
from pipeline.export.saturation import factor_ranges
from pipeline.models import build
from pipeline.models.sam import load_weights
from pipeline.ops import cpu
from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.int8 import find_scales
from pipeline.quantize.layers import chosen_layers, weights
from pipeline.quantize.qdq import Widths, rounded, write_qdq
from pipeline.quantize.scales.rows import collect
from pipeline.runtime import load
from pipeline.teacher import BUNDLED
from tests.quantize.test_quantize import CONFIG, Pictures, encoder, small  # noqa: F401 - fixtures

SIDES = {"full": Widths(), "reduced": Widths(reduce_range=True)}


def in_32_bits(left, right):
    """Products of unsigned ``left`` (rows, k) and signed ``right`` (k, n), as VNNI adds them."""
    return left.astype(np.int32) @ right.astype(np.int32)


def in_16_bits(left, right):
    """The same as ``vpmaddubsw`` adds them: pairs along k in 16 bits, which saturate; then all pairs in 32 bits."""
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    products = left.astype(np.int32)[:, :, None] * right.astype(np.int32)[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    return pairs.clip(-(2**15), 2**15 - 1).sum(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The bundled teacher's encoder, whose weights are trained: its layers, sampled inputs, and scales."""
    root = tmp_path_factory.mktemp("saturation")
    sam = load_weights(build("bundled"), BUNDLED["bundled"] / "model.safetensors").eval()
    export_encoder(sam, root / "encoder.onnx", opset=18, tolerance=1e-2)
    config = CONFIG.model_copy(update={"calibration_images": 2, "holdout_images": 1})
    data = CalibrationData(config, sam, scenes(root / "scenes", "calibration", 3, sam.input_size))
    model = onnx.load(root / "encoder.onnx")
    chosen = chosen_layers(model, attention=False, keep=())
    scales = {name: find_scales(config, model, chosen, data, widths) for name, widths in SIDES.items()}
    return model, chosen, scales, collect(model, chosen, data, rows=32, seed=0)


def test_the_reduced_range_never_saturates_where_the_full_one_does(teacher):
    model, chosen, scales, samples = teacher
    values, differing = weights(model, chosen), dict.fromkeys(SIDES, 0)
    for layer in chosen:
        rows = np.concatenate([part.numpy() for part in samples.rows[layer.node].left], axis=1)  # (groups, rows, k)
        for name in SIDES:
            step = scales[name].activations[layer.inputs[0]]
            unsigned = np.rint(rows / step).clip(-128, 127).astype(np.int16) + 128  # how engines make it unsigned
            whole = rounded(
                values[layer.weight], scales[name].weights[layer.weight], layer.axis, SIDES[name].weight_qmax
            )
            kernels = np.moveaxis(whole, layer.axis, 0).reshape(len(rows), -1, rows.shape[-1])  # (groups, n, k)
            for left, right in zip(unsigned, kernels.transpose(0, 2, 1), strict=True):
                differing[name] += int((in_16_bits(left, right) != in_32_bits(left, right)).sum())
    assert differing["reduced"] == 0
    assert differing["full"] > 1000


def test_the_worst_pair_fits_16_bits_at_64_and_at_no_larger_weight():
    most = np.full((1, 2), 255)
    for weight, exact in ((cpu.EXACT_FACTOR, True), (-cpu.EXACT_FACTOR, True), (cpu.EXACT_FACTOR + 1, False)):
        right = np.full((2, 1), weight)
        assert (in_16_bits(most, right) == in_32_bits(most, right)).all() == exact


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("widths", [Widths(8, 8), Widths(4, 8)], ids=str)
def test_a_file_with_the_full_range_breaks_the_rule(small, encoder, tmp_path, widths, attention):  # noqa: F811
    model, data = onnx.load(encoder), CalibrationData(CONFIG, small, Pictures())
    chosen = chosen_layers(model, attention=attention, keep=())
    reduced = Widths(widths.weight_bits, widths.activation_bits, reduce_range=True)
    found = write_qdq(model, chosen, find_scales(CONFIG, model, chosen, data, reduced))
    save(found, tmp_path / "reduced.onnx", reduce_range=True)
    assert max(factor_ranges(found).values()) <= 64
    found = write_qdq(model, chosen, find_scales(CONFIG, model, chosen, data, widths))
    if widths.weight_bits < 8 and not attention:
        save(found, tmp_path / "narrow.onnx", reduce_range=True)
        return
    with pytest.raises(Refused, match=r"multiplies int8 values of up to 12\d.*quantize.reduce_range"):
        save(found, tmp_path / "full.onnx", reduce_range=True)


@pytest.mark.parametrize("kind", ["onnx", "engine"])
@pytest.mark.parametrize(("reach", "exact", "refused"), [(127, False, True), (127, True, False), (64, False, False)])
def test_a_processor_without_vnni_refuses_the_full_range(tmp_path, monkeypatch, kind, reach, exact, refused):
    monkeypatch.setattr(cpu, "has_exact_int8", lambda: exact)
    engine = {"engine": "openvino"} if kind == "engine" else {}
    sizes = {"image_size": 64, "input_size": 64, "embedding_size": 4}
    contents = Contents(kind=kind, model="x", precision="int8", load=sizes | engine | {"weight_range": reach})
    Card.seal(tmp_path, contents, {})
    expected = r"up to 127, which saturate .*quantize.reduce_range" if refused else "does not exist"
    with pytest.raises(InputError, match=expected):
        load(tmp_path)


def test_an_int8_file_whose_card_does_not_say_its_range_counts_as_full(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "has_exact_int8", lambda: False)
    cards = [Card(kind="onnx", model="x", precision=p, load={}, digest="", parents={}) for p in ("int8", "fp32")]
    with pytest.raises(InputError, match="up to 127, which saturate"):
        cpu.check_exact(tmp_path, cards[0])
    cpu.check_exact(tmp_path, cards[1])


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "flags : fma avx avx2", False),
        ("x86_64", "flags : avx2 avx_vnni", True),
        ("x86_64", "flags : avx2 avx512f avx512_vnni", True),
        ("x86_64", "", False),
        ("aarch64", "Features : asimd", True),
    ],
)
def test_which_processors_add_int8_products_in_32_bits(tmp_path, monkeypatch, machine, flags, exact):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : A Processor\n{flags}\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    cpu.instructions.cache_clear()
    try:
        assert cpu.has_exact_int8() == exact
    finally:
        cpu.instructions.cache_clear()
