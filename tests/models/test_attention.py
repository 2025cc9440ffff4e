"""Dilated attention against a softmax over plain masks, and what follows from its definition."""

import math
import shutil
import sys

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline.core.errors import InputError
from pipeline.models import attention
from pipeline.models.attention import dilated_attention, fewer_scores, mixed_dilated_attention
from pipeline.runtime.onnxruntime import open_session

SIZES = [
    (16, 8, 1, 2),
    (16, 8, 2, 2),
    (16, 8, 4, 4),
    (16, 4, 4, 4),
    (16, 16, 2, 6),
    (17, 8, 2, 4),
    (23, 8, 3, 3),
    (16, 5, 2, 2),
    (19, 7, 3, 6),
    (12, 3, 4, 4),
    (5, 16, 2, 2),
    (5, 16, 3, 3),
    (2, 16, 4, 8),
    (1, 1, 1, 1),
]
"""N, segment, interval, heads: segments that divide N and do not, intervals that divide segments and do not or are
longer, segments longer than N."""


def random_qkv(b, heads, n, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, heads, n, d, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))


def meet(n, heads, segment, interval):
    """Whether token i attends to token j, for each head: ``(heads, n, n)``."""
    return torch.tensor(
        [
            [
                [
                    i // segment == j // segment
                    and (i % segment) % interval == h % interval
                    and (j % segment) % interval == h % interval
                    for j in range(n)
                ]
                for i in range(n)
            ]
            for h in range(heads)
        ]
    )


def slow(q, k, v, pairs):
    """One softmax over the scores of all pairs, each pair's scores masked out of all N x N; rows of none give zero."""
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / math.sqrt(q.shape[-1])
    masks = torch.stack([meet(q.shape[2], q.shape[1], *pair) for pair in pairs])  # (pairs, heads, n, n)
    # Every row has something to subtract, so that rows of none are 0 / 1.
    largest = scores.amax(-1, keepdim=True).detach()
    exponentials = (scores - largest).exp() * masks.sum(0)
    total = exponentials.sum(-1, keepdim=True)
    return (exponentials / torch.where(total > 0, total, 1.0)) @ v


def gradients(out, inputs):
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return torch.autograd.grad((out * weights).sum(), inputs)


def assert_same(found, expected, inputs):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [1, 7, 32])
def test_one_segment_and_interval_one_is_dense_attention(n):
    inputs = random_qkv(2, 3, n)
    assert_same(dilated_attention(*inputs, n, 1), F.scaled_dot_product_attention(*inputs), inputs)


@pytest.mark.parametrize(("n", "segment", "interval", "heads"), SIZES)
def test_results_and_gradients_are_those_of_a_masked_softmax(n, segment, interval, heads):
    inputs = random_qkv(2, heads, n)
    found = dilated_attention(*inputs, segment, interval, kernel="sdpa")
    assert_same(found, slow(*inputs, [(segment, interval)]), inputs)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 24),
    segment=st.integers(1, 30),
    interval=st.integers(1, 5),
    groups=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_any_sizes_give_the_masked_softmax(n, segment, interval, groups, seed):
    inputs = random_qkv(1, groups * interval, n, seed=seed)
    found = dilated_attention(*inputs, segment, interval)
    torch.testing.assert_close(found, slow(*inputs, [(segment, interval)]), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    pairs=st.lists(st.tuples(st.integers(1, 24), st.sampled_from([1, 2, 3, 6])), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_mixed_pairs_are_one_softmax_over_the_scores_of_all(n, pairs, seed):
    inputs = random_qkv(2, 6, n, seed=seed)
    assert_same(mixed_dilated_attention(*inputs, pairs), slow(*inputs, pairs), inputs)


def test_a_pair_that_did_not_keep_a_position_has_no_weight_there():
    inputs = random_qkv(1, 4, 8)
    dense, mixed = dilated_attention(*inputs, 8, 1), mixed_dilated_attention(*inputs, [(8, 1), (8, 4)])
    for head in range(4):
        kept = [i for i in range(8) if i % 4 == head]
        others = [i for i in range(8) if i % 4 != head]
        torch.testing.assert_close(mixed[0, head, others], dense[0, head, others], rtol=0, atol=1e-12)
        assert not torch.allclose(mixed[0, head, kept], dense[0, head, kept])


@pytest.mark.parametrize("pairs", [[(8, 2)], [(6, 2), (16, 4)]])
def test_a_token_reaches_its_segment_class_and_nothing_else(pairs):
    n, heads = 21, 4

    def mixed(qkv):
        return mixed_dilated_attention(*qkv, pairs)[0].sum(-1)

    qkv = torch.stack(random_qkv(1, heads, n)).detach()
    jacobian = torch.autograd.functional.jacobian(mixed, qkv)  # (heads, n, 3, 1, heads, n, d)
    reached = jacobian.abs().sum((2, 3, 6))  # (heads, n, heads, n): the result at i, moved by the token at j
    expected = torch.stack([meet(n, heads, *pair) for pair in pairs]).any(0)
    for head in range(heads):
        assert torch.equal(reached[head, :, head] > 0, expected[head])
        assert not reached[head][:, [other for other in range(heads) if other != head]].any()


def test_images_of_a_batch_never_mix():
    q, k, v = (x.detach() for x in random_qkv(3, 4, 10))
    together = dilated_attention(q, k, v, 4, 2)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], dilated_attention(*(x[i : i + 1] for x in (q, k, v)), 4, 2), rtol=0, atol=1e-14
        )
    q[1], k[1], v[1] = 7.0, -3.0, 100.0
    changed = dilated_attention(q, k, v, 4, 2)
    assert torch.equal(changed[[0, 2]], together[[0, 2]])
    assert not torch.equal(changed[1], together[1])


@pytest.mark.parametrize("interval", [2, 3])
def test_every_position_is_alive_in_the_heads_that_keep_it_and_zero_in_the_others(interval):
    out = dilated_attention(*random_qkv(1, 6, 24), 12, interval)
    alive = out[0].abs().sum(-1) > 0
    assert torch.equal(alive, torch.tensor([[i % 12 % interval == h % interval for i in range(24)] for h in range(6)]))
    assert alive.any(dim=0).all()


def test_strided_views_of_one_projection_give_what_copies_give():
    qkv = torch.randn(2, 24, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    views = qkv.permute(2, 0, 3, 1, 4)
    copies = tuple(x.contiguous() for x in views)
    assert torch.equal(dilated_attention(*views, 8, 2), dilated_attention(*copies, 8, 2))


def test_half_precision_keeps_close_to_full_precision():
    inputs = tuple(x.detach().float() for x in random_qkv(1, 4, 32, d=16))
    halves = tuple(x.bfloat16() for x in inputs)
    for function in (
        lambda *x: dilated_attention(*x, 16, 2),
        lambda *x: mixed_dilated_attention(*x, [(16, 2), (8, 1)]),
    ):
        half, full = function(*halves), function(*inputs)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), full, rtol=0, atol=0.03)


def test_scores_fall_by_the_formula():
    assert fewer_scores(4096, 1024, 2) == 16
    n, segment, interval = 48, 12, 3
    kept = meet(n, 1, segment, interval).sum() + meet(n, 2, segment, interval)[1].sum()
    assert n * n / (kept / 2) == fewer_scores(n, segment, interval)
    assert fewer_scores(8, 100, 2) == 4


@pytest.mark.parametrize(
    ("heads", "segment", "interval", "says"),
    [
        (6, 8, 4, "6 heads cannot cover the 4 positions of interval 4: choose an interval that divides"),
        (2, 0, 1, "segment and interval must be at least 1, not 0 and 1"),
        (2, 4, 0, "segment and interval must be at least 1, not 4 and 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(heads, segment, interval, says):
    inputs = random_qkv(1, heads, 8)
    with pytest.raises(InputError, match=says):
        dilated_attention(*inputs, segment, interval)
    with pytest.raises(InputError, match=says):
        mixed_dilated_attention(*inputs, [(8, 1), (segment, interval)])


def test_no_pairs_are_refused():
    with pytest.raises(InputError, match=r"at least one \(segment, interval\)"):
        mixed_dilated_attention(*random_qkv(1, 2, 8), [])


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    unchecked = attention._resolve_kernel.__wrapped__  # the type checker of these tests would be the first to refuse
    with pytest.raises(InputError, match=r"unknown kernel 'fast': choose one of auto, flash_attn, sdpa"):
        unchecked("fast", torch.zeros(1, 1, 1, 1))


BUILDS = {
    "flash-attn-4": ("", "cannot import name 'flash_attn_func'"),
    "for another torch": (
        "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')",
        "undefined symbol",
    ),
    "without CUDA": ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart"),
}


@pytest.fixture
def flash(monkeypatch, tmp_path):
    """Replaces the installed flash-attn by a package with this code, or by none."""

    def install(code):
        monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
        if code is None:
            monkeypatch.setitem(sys.modules, "flash_attn", None)
        else:
            (tmp_path / "flash_attn").mkdir()
            (tmp_path / "flash_attn/__init__.py").write_text(code)
            monkeypatch.syspath_prepend(tmp_path)
        attention._import_fault.cache_clear()

    yield install
    attention._import_fault.cache_clear()


@pytest.mark.parametrize(("code", "says"), [(None, "halted"), *BUILDS.values()], ids=["absent", *BUILDS])
def test_a_kernel_that_cannot_be_imported_says_why(flash, code, says):
    flash(code)
    with pytest.raises(InputError, match=rf"needs flash-attn 2, which cannot be imported \(.*{says}"):
        dilated_attention(*random_qkv(1, 2, 8), 4, 2, kernel="flash_attn")


def test_what_cannot_be_imported_is_not_chosen(flash):
    class OnGpu(torch.Tensor):
        is_cuda = True

    q = torch.zeros(1, 8, 2, 16, dtype=torch.bfloat16).as_subclass(OnGpu)
    for code, _ in BUILDS.values():
        flash(code)
        assert attention._resolve_kernel("auto", q) is attention._sdpa
        shutil.rmtree(sys.path.pop(0) + "/flash_attn")


def test_the_choice_of_a_kernel_compiles_into_one_graph():
    @torch.compile(backend="eager", fullgraph=True)
    def fault(x):
        return x + 1 if attention._flash_fault() else x

    fault(torch.zeros(1))


def test_a_kernel_that_cannot_take_the_tensors_raises_and_says_which_it_takes(monkeypatch):
    monkeypatch.setattr(attention, "_flash_fault", lambda: None)
    with pytest.raises(InputError, match=r"takes CUDA tensors in half precision .* not torch.float64 on cpu with 4"):
        dilated_attention(*random_qkv(1, 2, 8), 4, 2, kernel="flash_attn")


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "segment", "interval"), [(256, 64, 2), (250, 64, 2), (256, 256, 1), (100, 30, 3)])
def test_flash_attn_gives_what_sdpa_gives(n, segment, interval):
    if fault := attention._flash_fault():
        pytest.skip(f"flash-attn: {fault}; `make setup-gpu` installs it")
    views = torch.randn(2, n, 3, 6, 64, device="cuda", dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
    flash, sdpa = (dilated_attention(*views, segment, interval, kernel=kernel) for kernel in ("flash_attn", "sdpa"))
    torch.testing.assert_close(flash, sdpa, rtol=0, atol=0.02)
    assert torch.equal(dilated_attention(*views, segment, interval), flash)


class Mixer(nn.Module):
    def __init__(self, pairs):
        super().__init__()
        self.pairs = pairs

    def forward(self, qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return mixed_dilated_attention(q, k, v, self.pairs)


@pytest.mark.parametrize("pairs", [[(8, 2)], [(5, 2)], [(16, 4)], [(8, 1), (16, 2)]])
def test_exported_attention_is_plain_and_takes_any_batch(tmp_path, pairs):
    mixer, path = Mixer(pairs).eval(), tmp_path / "attention.onnx"
    qkv = torch.randn(2, 16, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(mixer, (qkv,), dynamo=True, opset_version=18, dynamic_shapes=batch, verbose=False)
    program.save(path)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not kinds & {"ScatterND", "ScatterElements", "If", "Loop", "NonZero", "GatherND", "Tile", "OneHot"}
    session = open_session(path)
    for images in (qkv, qkv[:1], torch.cat([qkv, qkv[:1]])):
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), mixer(images), rtol=0, atol=1e-5)
