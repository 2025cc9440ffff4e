"""Simulation is the file it stands for, and the search finds scales that lose less."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.graph import Graph
from pipeline.quantize.int8 import find_scales
from pipeline.quantize.keys import centre_keys, keys
from pipeline.quantize.layers import chosen_layers, layers
from pipeline.quantize.qdq import Widths, qmax, write_qdq
from pipeline.quantize.rounding import fake_quantize, kinds
from pipeline.quantize.scales.rows import collect
from pipeline.quantize.scales.search import search
from pipeline.quantize.sensitivity import group
from pipeline.quantize.simulated import SimulatedSegmenter
from pipeline.quantize.task import likelihood, squared_gradients
from pipeline.runtime.onnxruntime import open_session
from tests.quantize.test_quantize import CONFIG, Pictures, encoder, lowered, small  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(small):  # noqa: F811
    return CalibrationData(CONFIG, small, Pictures())


def images(count=2):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_graph_in_pytorch_is_the_file(small, encoder):  # noqa: F811
    graph = Graph(onnx.load(encoder))
    found = graph(images())[graph.output]
    (expected,) = open_session(encoder).run(None, {"image": images().numpy()})
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_gradients_through_the_graph_are_the_modules(small, encoder):  # noqa: F811
    graph, ours, theirs = Graph(onnx.load(encoder)), images(1).requires_grad_(), images(1).requires_grad_()
    weight = torch.randn(1, 256, 4, 4, generator=torch.Generator().manual_seed(1))
    (graph(ours)[graph.output] * weight).sum().backward()
    (small.image_encoder(theirs) * weight).sum().backward()
    np.testing.assert_allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))


def test_an_unknown_operator_cannot_be_simulated(encoder):  # noqa: F811
    model = onnx.load(encoder)
    model.graph.node[0].op_type = "Hardmax"
    with pytest.raises(InputError, match=r"is a Hardmax, which cannot be simulated"):
        Graph(model)


@pytest.mark.parametrize("widths", [Widths(8, 8), Widths(8, 8, True), Widths(6, 6), Widths(4, 8, True)], ids=str)
@pytest.mark.parametrize("attention", [True, False])
def test_simulation_gives_what_the_qdq_file_gives(small, encoder, data, tmp_path, widths, attention):  # noqa: F811
    model = onnx.load(encoder)
    chosen = chosen_layers(model, attention=attention, keep=[])
    scales = find_scales(CONFIG, model, chosen, data, widths)
    save(write_qdq(model, chosen, scales), tmp_path / "encoder.onnx")
    # Over the full range some processors saturate: there the file's meaning is what is compared with.
    session = open_session(tmp_path / "encoder.onnx", simulate=widths == Widths(8, 8))
    (expected,) = session.run(None, {"image": images().numpy()})
    found = SimulatedSegmenter(small, model, chosen, scales).encode(images()).numpy()
    # One value that falls on the other side of a step moves a few others by less than this.
    assert np.abs(found - expected).mean() < 0.02 * expected.std()


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    scale=st.floats(0.0625, 2.0, width=32),
    bits=st.integers(2, 8),
)
def test_rounding_errs_by_half_a_step_within_the_range(values, scale, bits):
    x, step = torch.tensor(values), torch.tensor(scale)
    found = fake_quantize(x, step, bits)
    inside = (x >= -(qmax(bits) + 1) * step) & (x <= qmax(bits) * step)
    assert ((found - x).abs()[inside] <= step / 2 * 1.001 + 1e-6).all()
    assert torch.equal(fake_quantize(found, step, bits), found)
    assert found.unique().numel() <= 2**bits


def test_two_ranges_lose_less_than_one_after_gelu_and_softmax():
    generator = torch.Generator().manual_seed(0)
    gelu = torch.nn.functional.gelu(3 * torch.randn(4096, generator=generator))
    softmax = (4 * torch.randn(64, 256, generator=generator)).softmax(-1)
    for x, kind in ((gelu, "gelu"), (softmax, "softmax")):
        scales = torch.linspace(0.01, 1.2, 100) * x.abs().max() / qmax(6)
        plain, split = (
            min(float((fake_quantize(x, s, 6, k) - x).square().sum()) for s in scales) for k in ("plain", kind)
        )
        assert split < plain


def test_tensors_after_gelu_and_softmax_are_found(encoder):  # noqa: F811
    model = onnx.load(encoder)
    found = kinds(model)
    by_name = {layer.name: layer for layer in layers(model)}
    assert found[by_name["block.0"].inputs[0]] == "gelu"
    assert by_name["widen"].inputs[0] not in found
    assert "softmax" in found.values()


def test_the_squared_gradient_is_the_hessian_of_the_divergence(small, data):  # noqa: F811
    sample = data.sample(0)
    embedding = torch.randn(1, 256, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def outputs(x):
        from pipeline.models.decoder import decode
        from pipeline.quantize.task import prompts

        coords, labels = prompts(sample, small.image_size)
        logits, ious = decode(small, x, coords[None], labels[None])
        return logits, torch.logit(ious.clamp(1e-3, 1 - 1e-3))

    squares = torch.zeros_like(embedding)
    generator, draws = torch.Generator().manual_seed(0), 60
    for _ in range(draws):
        loss = likelihood(small, embedding, sample, generator)
        squares += squared_gradients(loss, {"embedding": embedding})["embedding"] / draws
    with torch.no_grad():
        reference = [value.sigmoid() for value in outputs(embedding)]

    def divergence(x):
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return sum(bce(v, p) - bce(torch.logit(p), p) for v, p in zip(outputs(x), reference, strict=True))

    # Along random directions: KL(x + d) is half of d' H d; the diagonal of H is its mean over signs.
    expected = []
    for seed in range(20):
        step = 1e-1 * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(seed)).sign()
        with torch.no_grad():
            expected.append((float(divergence(embedding + step)) * 2, float((squares * step.square()).sum())))
    measured, predicted = np.mean(expected, axis=0)
    assert predicted == pytest.approx(measured, rel=0.5)


def test_rows_of_a_layer_are_what_it_computes(encoder, data):  # noqa: F811
    model = onnx.load(encoder)
    chosen = chosen_layers(model, attention=True, keep=[])
    samples = collect(model, chosen, data, rows=30, seed=0)
    for layer in chosen:
        rows = samples.rows[layer.node]
        assert len(rows.left) == len(rows.hessian) == 3
        for left, hessian in zip(rows.left, rows.hessian, strict=True):
            assert left.shape[:2] == hessian.shape[:2]
            assert torch.isfinite(hessian).all()
    assert any(float(h.sum()) > 0 for rows in samples.rows.values() for h in rows.hessian)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_the_search_loses_less_than_the_largest_magnitude(small, encoder, data, bits):  # noqa: F811
    model = onnx.load(encoder)
    chosen = chosen_layers(model, attention=False, keep=[])
    widths = Widths(*bits)
    config = CONFIG.search.model_copy(update={"rows": 96})
    found = search(config, model, chosen, data, seed=0, widths=widths)
    again = search(config, model, chosen, data, seed=0, widths=widths)
    assert found.activations == again.activations
    pixels = torch.cat([torch.from_numpy(data.pixels(i)) for i in data.held_out])
    exact = SimulatedSegmenter(small, model, [], found).encode(pixels)
    losses = [
        float((SimulatedSegmenter(small, model, chosen, scales).encode(pixels) - exact).square().mean())
        for scales in (found, find_scales(CONFIG, model, chosen, data, widths))
    ]
    assert losses[0] < losses[1] * (1.05 if bits == (8, 8) else 0.8)


def test_scales_of_the_search_become_plain_qdq(small, encoder, tmp_path):  # noqa: F811
    config = CONFIG.search.model_copy(update={"rows": 64, "rounds": 1})
    path, figures = lowered(small, encoder, tmp_path, method="search", search=config)
    assert figures["embedding_cosine"] > 0.99
    assert figures["quantize_linear_nodes"] > 0
    assert path.stat().st_size < 0.5 * encoder.stat().st_size


def bimodal_keys(model):
    """The model with a bias of +4 or -4 on each channel of what attends, which its softmax does not see."""
    name, node = next(iter(keys(model).items()))
    signs = np.where(np.arange(64) % 2, 4, -4).astype(np.float32).reshape(1, 64, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(signs, "signs"))
    made = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    node.input[1] = "moved"
    model.graph.node.insert(made, onnx.helper.make_node("Add", [name, "signs"], ["moved"], name="move"))
    return model


def test_bimodal_keys_are_centred_and_the_function_stays(encoder, data):  # noqa: F811
    plain = onnx.load(encoder)
    assert centre_keys(plain, data)[1] == []
    model = bimodal_keys(onnx.load(encoder))
    centred, names = centre_keys(model, data)
    assert names == ["moved"]
    results = [Graph(m)(images(), keep={"moved", "moved_centred"}) for m in (plain, model, centred)]
    outputs = [result[plain.graph.output[0].name] for result in results]
    assert (outputs[1] - outputs[0]).abs().max() < 1e-3
    assert (outputs[2] - outputs[0]).abs().max() < 1e-3
    assert results[2]["moved_centred"].abs().max() < results[2]["moved"].abs().max() / 2


def test_the_sign_trick_would_change_nothing_on_a_symmetric_grid():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    assert torch.equal(fake_quantize(-x, torch.tensor(0.03), 8), -fake_quantize(x, torch.tensor(0.03), 8))


def test_the_sensitivity_report_names_layers_groups_and_what_to_keep(small, encoder, tmp_path):  # noqa: F811
    (tmp_path / "encoder.onnx").write_bytes(encoder.read_bytes())
    from pipeline.quantize.int8 import int8

    config = CONFIG.model_copy(update={"sensitivity_images": 1})
    int8(config, tmp_path / "encoder.onnx", CalibrationData(config, small, Pictures()))
    report = json.loads((tmp_path / "sensitivity.json").read_text())
    names = [layer.name for layer in chosen_layers(onnx.load(encoder), attention=False, keep=[])]
    assert [row["name"] for row in report["layers"]] == names
    assert all(row["cosine"] > 0.99 and row["snr_db"] > 20 for row in report["layers"])
    assert {row["name"] for row in report["groups"]} == {group(name) for name in names}
    assert sum(row["layers"] for row in report["groups"]) == len(names)
    assert report["fp32"]["embedding_cosine"] == pytest.approx(1)
    assert all(row["embedding_cosine"] >= report["lowered"]["embedding_cosine"] - 1e-3 for row in report["groups"])
    assert set(report["suggested"]["keep"]) <= set(names)
    assert sum(report["worst"][0]["counts"]) > 0
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["sensitivity_groups.png", "sensitivity_histograms.png", "sensitivity_layers.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.stages.4.op_list.1.context_module.main.qkv.conv", "backbone.stages.4"),
        ("neck.middle.op_list.0.main.point_conv.conv", "neck"),
        ("blocks.2.attn.qkv", "blocks.2"),
        ("patch_embed", "patch_embed"),
    ],
)
def test_layers_are_grouped_by_their_stage(name, expected):
    assert group(name) == expected


SAMPLED = """
import hashlib, sys
from pathlib import Path
import onnx
from pipeline.models import build
from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.layers import layers
from pipeline.quantize.scales.rows import collect
from tests.quantize.test_quantize import CONFIG, Pictures, make_small
path, digest = Path(sys.argv[1]), hashlib.sha256()
model = onnx.load(path)
samples = collect(model, layers(model), CalibrationData(CONFIG, make_small(), Pictures()), rows=64, seed=0)
for rows in samples.rows.values():
    for tensor in (*rows.left, *rows.right, *rows.hessian):
        digest.update(tensor.contiguous().numpy().tobytes())
for pair in samples.values.values():
    for tensor in pair:
        digest.update(tensor.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_samples_do_not_depend_on_the_hash_seed_of_the_process(encoder):  # noqa: F811
    def sampled(seed):
        command = [sys.executable, "-c", SAMPLED, str(encoder)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert sampled("1") == sampled("2") == sampled("3")
