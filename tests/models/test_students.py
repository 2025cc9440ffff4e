"""What every student keeps to, whatever it is made of."""

import pytest
import torch
from segment_anything import sam_model_registry

from pipeline.core.errors import InputError
from pipeline.models import STUDENTS, TEACHERS, build

NANOS = [name for name in STUDENTS if name.endswith("_nano")]
"""One of each family is run whole; the others pass claims on shapes, and agree with published outputs elsewhere."""


@pytest.fixture(scope="module", params=NANOS)
def sam(request):
    return build(request.param).eval()


def images(sam, batch=1, seed=0):
    return torch.randn(batch, 3, sam.input_size, sam.input_size, generator=torch.Generator().manual_seed(seed))


def test_every_family_has_a_nano_of_256_pixels_and_16_cells():
    families = {"efficientvit_sam", "tinysam", "sam_lightening", "edge_sam"}
    assert {name.removesuffix("_nano") for name in NANOS} == families
    for name in NANOS:
        with torch.device("meta"):
            sam = build(name)
        assert (sam.image_size, sam.input_size, sam.embedding_size) == (256, 256, 16)


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS])
def test_image_embedding_has_the_shape_the_decoder_expects(name):
    with torch.device("meta"):
        sam = build(name).eval()
    embedding = sam.image_encoder(torch.empty(2, 3, sam.input_size, sam.input_size, device="meta"))
    assert embedding.shape == (2, 256, sam.embedding_size, sam.embedding_size)
    assert sam.prompt_encoder.image_embedding_size == (sam.embedding_size,) * 2
    assert sam.prompt_encoder.input_image_size == (sam.image_size,) * 2


@pytest.mark.parametrize("name", [name for name in STUDENTS if name.startswith("efficientvit_sam")])
def test_every_norm_of_an_efficientvit_sam_has_the_familys_epsilon(name):
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


def test_mixed_precision_gives_nearly_the_same_embedding(sam):
    with torch.inference_mode():
        expected = sam.image_encoder(images(sam))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = sam.image_encoder(images(sam)).float()
    assert float(torch.cosine_similarity(mixed.flatten(), expected.flatten(), dim=0)) > 0.99


@pytest.mark.parametrize("name", NANOS)
def test_state_dict_carries_the_whole_function(name):
    sam, other = build(name).eval(), build(name, seed=1).eval()
    with torch.inference_mode():
        expected = sam.image_encoder(images(sam))
        assert not torch.allclose(other.image_encoder(images(sam)), expected, atol=1e-2)
        other.load_state_dict(sam.state_dict(), strict=True)
        torch.testing.assert_close(other.image_encoder(images(sam)), expected, rtol=0, atol=0)


# Where other sides are taken, a small one is enough to reach everything.
@pytest.mark.parametrize(
    ("name", "side"),
    [*((nano, 256) for nano in NANOS), ("efficientvit_sam_l0", 256), ("tinysam", 128), ("edge_sam", 128)],
)
def test_gradient_reaches_every_parameter_of_the_encoder_that_is_trained(name, side):
    encoder = build(name).image_encoder.train()
    embedding = encoder(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)))
    (embedding * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    trained = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    left_out = {key.partition(".")[0] for key in dict(encoder.named_parameters()).keys() - trained.keys()}
    assert left_out == ({"norm_head", "head"} if name == "tinysam" else set())


@pytest.mark.parametrize("name", NANOS)
def test_a_student_gives_the_same_after_training_mode_and_the_new_after_new_weights(name):
    sam, other = build(name).eval(), build(name, seed=1).eval()
    with torch.inference_mode():
        before = sam.image_encoder(images(sam))
        other.image_encoder(images(sam))
        assert torch.equal(sam.train().eval().image_encoder(images(sam)), before)
        # No switch of modes in between: nothing of the old weights may be left.
        other.load_state_dict(sam.state_dict())
        assert torch.equal(other.image_encoder(images(sam)), before)


@pytest.mark.parametrize("name", NANOS)
def test_nano_learns_from_scratch(name):
    sam = build(name).train()
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


@pytest.mark.parametrize("name", NANOS)
def test_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone(name):
    before = torch.random.get_rng_state()
    first, second = (build(name, seed=3).state_dict() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(v, first[k]) for k, v in build(name, seed=4).state_dict().items())


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'efficientvit_sam_l9'.*vit_h.*efficientvit_sam_l0"):
        build("efficientvit_sam_l9")


def test_an_option_that_a_model_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(InputError, match=r"sam_lightening has no option 'atention': it has attention\."):
        build("sam_lightening", {"atention": []})
    with pytest.raises(InputError, match=r"tinysam has no option 'attention': it has none\."):
        build("tinysam", {"attention": []})


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_a_vit_takes_segment_anythings_checkpoints(name):
    with torch.device("meta"):
        ours, theirs = build(name), sam_model_registry[name](checkpoint=None)
    expected = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
