import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models import decoder
from pipeline.models.decoder import decode, decode_with_tokens
from pipeline.models.sam import assemble

GRID, SIDE = 8, 128


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return assemble(nn.Identity(), image_size=SIDE, input_size=SIDE, embedding_size=GRID).eval()


def published(sam, embedding, points, boxes, mask_input):
    """segment-anything's own forward for one image."""
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
    return sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)


def with_boxes(points, boxes, count):
    """The same prompts as points alone."""
    coords = [points[0]] if points else []
    labels = [points[1]] if points else []
    if boxes is None:
        coords.append(torch.zeros(count, 1, 2))
        labels.append(-torch.ones(count, 1))
    else:
        coords.append(boxes.reshape(count, 2, 2))
        labels.append(torch.tensor([[2.0, 3.0]]).expand(count, -1))
    return torch.cat(coords, dim=1), torch.cat(labels, dim=1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    prompts=st.integers(1, 4),
    points=st.integers(0, 3),
    boxed=st.booleans(),
    masked=st.booleans(),
)
def test_equals_segment_anything_for_points_boxes_and_masks(sam, seed, prompts, points, boxed, masked):
    if points == 0 and not boxed:
        boxed = True
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, 256, GRID, GRID, generator=g)
    clicks = (
        (torch.rand(prompts, points, 2, generator=g) * SIDE, torch.randint(0, 2, (prompts, points), generator=g))
        if points
        else None
    )
    boxes = torch.rand(prompts, 4, generator=g) * SIDE if boxed else None
    mask_input = torch.randn(prompts, 1, 4 * GRID, 4 * GRID, generator=g) if masked else None
    coords, labels = with_boxes(clicks, boxes, prompts)
    with torch.no_grad():
        expected, expected_iou = published(sam, embedding, clicks, boxes, mask_input)
        found, iou = decode(
            sam, embedding, coords[None], labels[None], None if mask_input is None else mask_input[None]
        )
    assert torch.allclose(found[0], expected, atol=1e-5 * float(expected.abs().max()))
    assert torch.allclose(iou[0], expected_iou, atol=1e-5)


def test_gradients_equal_segment_anythings(sam):
    g = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 256, GRID, GRID, generator=g, requires_grad=True)
    points = (torch.rand(3, 2, 2, generator=g) * SIDE, torch.ones(3, 2))
    coords, labels = with_boxes(points, None, 3)

    def gradients(outputs):
        sam.zero_grad()
        embedding.grad = None
        masks, iou = outputs
        (masks.square().mean() + iou.square().mean()).backward()
        return [embedding.grad.clone()] + [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in sam.mask_decoder.parameters()
        ]

    expected = gradients(published(sam, embedding, points, None, None))
    found = gradients(tuple(o[0] for o in decode(sam, embedding, coords[None], labels[None])))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * max(1e-3, float(theirs.abs().max())))


def test_gradients_keep_their_precision_under_autocast(sam):
    g = torch.Generator().manual_seed(5)
    embeddings = torch.randn(2, 256, GRID, GRID, generator=g)
    coords, labels = torch.rand(2, 3, 2, 2, generator=g) * SIDE, torch.ones(2, 3, 2)

    def gradients(enabled):
        sam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            masks, iou = decode(sam, embeddings, coords, labels)
        (masks.float().square().mean() + iou.float().square().mean()).backward()
        return {name: p.grad.clone() for name, p in sam.mask_decoder.named_parameters() if p.grad is not None}

    exact, lowered = gradients(False), gradients(True)
    for name in ("output_upscaling.0.weight", "output_upscaling.1.weight", "output_upscaling.1.bias"):
        assert (lowered[name] - exact[name]).norm() < 0.05 * exact[name].norm(), name


def test_several_images_are_decoded_as_if_alone(sam):
    g = torch.Generator().manual_seed(2)
    embeddings = torch.randn(3, 256, GRID, GRID, generator=g)
    coords = torch.rand(3, 2, 2, 2, generator=g) * SIDE
    labels = torch.tensor([[1.0, -1.0], [2.0, 3.0]]).expand(3, -1, -1)
    with torch.no_grad():
        together, iou = decode(sam, embeddings, coords, labels)
        for i in range(3):
            alone, alone_iou = decode(sam, embeddings[i : i + 1], coords[i : i + 1], labels[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-6)
            assert torch.allclose(iou[i], alone_iou[0], atol=1e-6)


def test_a_mask_that_is_switched_off_does_nothing(sam):
    g = torch.Generator().manual_seed(3)
    embedding, coords = torch.randn(1, 256, GRID, GRID, generator=g), torch.rand(1, 2, 2, 2, generator=g) * SIDE
    labels, mask = torch.ones(1, 2, 2), torch.randn(1, 2, 1, 4 * GRID, 4 * GRID, generator=g)
    with torch.no_grad():
        without, _ = decode(sam, embedding, coords, labels)
        off, _ = decode(sam, embedding, coords, labels, mask, torch.zeros(1))
        on, _ = decode(sam, embedding, coords, labels, mask, torch.ones(1))
    assert torch.allclose(without, off, atol=1e-6)
    assert not torch.allclose(without, on, atol=1e-3)


def test_positions_keep_their_precision_under_autocast(sam):
    coords = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(4)) * SIDE
    labels = -torch.ones(4, 2)
    labels[..., 0] = 1
    with torch.inference_mode():
        exact = decoder._embed_points(sam, coords, labels)
        with torch.autocast("cpu", torch.bfloat16):
            embedded = decoder._embed_points(sam, coords, labels)
    assert torch.allclose(embedded, exact, atol=2e-2)


def test_output_tokens_are_those_of_the_published_transformer(sam):
    g = torch.Generator().manual_seed(0)
    embedding, boxes = torch.randn(1, 256, GRID, GRID, generator=g), torch.rand(3, 4, generator=g) * SIDE
    coords, labels = with_boxes(None, boxes, 3)
    found = list[torch.Tensor]()
    transformer = sam.mask_decoder.transformer
    with torch.no_grad(), transformer.register_forward_hook(lambda module, given, out: found.append(out[0])):
        published(sam, embedding, None, boxes, None)
        _, _, tokens = decode_with_tokens(sam, embedding, coords[None], labels[None])
    assert tokens.shape == (1, 3, 5, 256)
    torch.testing.assert_close(tokens[0], found[0][:, :5], rtol=0, atol=1e-4)
