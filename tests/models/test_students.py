"""What every student keeps to, whatever it is made of."""

import pytest
import torch
from segment_anything import sam_model_registry

from pipeline.errors import InputError
from pipeline.models import STUDENTS, TEACHERS, build

SMALL = "efficientvit_sam_nano"
"""The student that is run whole; the others pass claims on shapes, and agree with published outputs elsewhere."""


@pytest.fixture(scope="module")
def sam():
    return build(SMALL).eval()


def images(sam, batch=1, seed=0):
    return torch.randn(batch, 3, sam.input_size, sam.input_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS])
def test_image_embedding_has_the_shape_the_decoder_expects(name):
    with torch.device("meta"):
        sam = build(name).eval()
    embedding = sam.image_encoder(torch.empty(2, 3, sam.input_size, sam.input_size, device="meta"))
    assert embedding.shape == (2, 256, sam.embedding_size, sam.embedding_size)
    assert sam.prompt_encoder.image_embedding_size == (sam.embedding_size,) * 2
    assert sam.prompt_encoder.input_image_size == (sam.image_size,) * 2


@pytest.mark.parametrize("name", STUDENTS)
def test_every_norm_of_a_student_has_the_familys_epsilon(name):
    with torch.device("meta"):
        sam = build(name)
    eps = {m.eps for m in sam.modules() if hasattr(m, "eps") and not hasattr(m, "aggreg")}
    assert eps == {1e-6}


def test_embedding_is_finite_varied_and_the_same_when_computed_again(sam):
    with torch.inference_mode():
        once, again = (sam.image_encoder(images(sam)) for _ in range(2))
        other = sam.image_encoder(images(sam, seed=1))
    assert once.isfinite().all()
    assert once.std() > 0.1
    assert torch.equal(once, again)
    assert not torch.allclose(once, other, atol=1e-2)


def test_an_image_has_the_same_embedding_alone_and_in_a_batch(sam):
    batch = images(sam, batch=2)
    with torch.inference_mode():
        together, alone = sam.image_encoder(batch), sam.image_encoder(batch[:1])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)


def test_state_dict_carries_the_whole_function(sam):
    other = build(SMALL, seed=1).eval()
    with torch.inference_mode():
        expected = sam.image_encoder(images(sam))
        assert not torch.allclose(other.image_encoder(images(sam)), expected, atol=1e-2)
        other.load_state_dict(sam.state_dict(), strict=True)
        torch.testing.assert_close(other.image_encoder(images(sam)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [SMALL, "efficientvit_sam_l0"])
def test_gradient_reaches_every_parameter_of_the_encoder(name):
    sam = build(name).train()
    weights = torch.randn(2, 256, sam.embedding_size, sam.embedding_size, generator=torch.Generator().manual_seed(0))
    # Half the side is enough to reach everything.
    x = torch.randn(2, 3, sam.input_size // 2, sam.input_size // 2, generator=torch.Generator().manual_seed(1))
    (sam.image_encoder(x) * weights).sum().backward()
    without = [k for k, p in sam.image_encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_nano_learns_from_scratch():
    sam = build("efficientvit_sam_nano").train()
    target = torch.randn(2, 256, 16, 16, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(sam.image_encoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss = (sam.image_encoder(images(sam, batch=2)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    before = torch.random.get_rng_state()
    first, second = (build("efficientvit_sam_nano", seed=3).state_dict() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(v, first[k]) for k, v in build("efficientvit_sam_nano", seed=4).state_dict().items())


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'efficientvit_sam_l9'.*efficientvit_sam_l0.*vit_h"):
        build("efficientvit_sam_l9")


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_a_vit_takes_segment_anythings_checkpoints(name):
    with torch.device("meta"):
        ours, theirs = build(name), sam_model_registry[name](checkpoint=None)
    expected = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
