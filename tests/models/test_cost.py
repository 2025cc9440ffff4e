"""Costs against the published tables and against hand-made sums."""

import pytest
import torch

from pipeline.models import STUDENTS, build
from pipeline.models.cost import count_parameters, macs

PUBLISHED = {
    "efficientvit_sam_l0": (30_728_224, 34_792_784, 34.77),
    "efficientvit_sam_l1": (43_585_568, 47_650_128, 48.98),
    "efficientvit_sam_l2": (57_264_032, 61_328_592, 68.55),
    "efficientvit_sam_xl0": (112_893_344, 116_957_904, 184.80),
    "efficientvit_sam_xl1": (199_281_568, 203_346_128, 321.87),
    "tinysam": (6_065_532, 10_130_092, 38.77),
    "edge_sam": (5_517_552, 9_582_112, 20.05),
    "vit_b": (89_670_912, 93_735_472, 486.04),
    "vit_h": (637_026_048, 641_090_608, 2980.54),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    with torch.device("meta"):
        sam = build(name)
    encoder, total, gmacs = PUBLISHED[name]
    assert count_parameters(sam.image_encoder) == encoder
    assert count_parameters(sam) == total
    assert macs(sam)["encoder"] / 1e9 == pytest.approx(gmacs, abs=0.006)


def test_scores_of_dilated_attention_are_counted_as_its_options_have_it():
    def encoder_macs(segment, interval):
        with torch.device("meta"):
            return macs(build("sam_lightening", {"attention": [[[segment, interval]]] * 6}))["encoder"]

    # Of 4096 tokens: products of queries and keys, and of weights and values, in 6 blocks of width 384.
    dense = 6 * 2 * 4096**2 * 384
    without = encoder_macs(4096, 1) - dense
    assert encoder_macs(1024, 2) - without == dense / 16
    assert encoder_macs(512, 2) - without == dense / 32


def test_decoding_a_prompt_costs_less_than_in_the_published_order_of_products():
    with torch.device("meta"):
        sam = build("efficientvit_sam_l0")
    assert 0.4e9 < macs(sam)["decoder_per_prompt"] < 1.81e9


def test_counting_leaves_the_model_as_it_was():
    sam = build("efficientvit_sam_nano")
    before = {k: v.clone() for k, v in sam.state_dict().items()}
    first = macs(sam)
    assert sam.training
    assert first == macs(sam)
    assert all(torch.equal(v, before[k]) for k, v in sam.state_dict().items())


@pytest.mark.parametrize("name", [name for name in STUDENTS if name.endswith("_nano")])
def test_nano_is_small_and_far_cheaper_than_the_bundled_teacher(name):
    with torch.device("meta"):
        nano, bundled = build(name), build("bundled")
    assert 2e6 < count_parameters(nano.image_encoder) < 3e6
    assert 2.5 * macs(nano)["encoder"] < macs(bundled)["encoder"]
