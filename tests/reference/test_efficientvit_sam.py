"""Our EfficientViT-SAM is the published function and takes the published checkpoints (see parity/README.md)."""

import pytest

from tests.reference.published import PROMPTS, check_embedding, check_keys, check_masks, encoded, rebuilt

VARIANTS = ["l0", "l1", "l2", "xl0", "xl1"]
COMPUTED = ["l0", "l1", "xl0"]


@pytest.fixture(scope="module", params=COMPUTED)
def result(request):
    name = f"efficientvit_sam_{request.param}"
    return encoded(rebuilt(name), name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_has_the_published_keys_shapes_and_types(variant):
    check_keys(f"efficientvit_sam_{variant}", f"efficientvit_sam_{variant}")


def test_image_embedding_is_the_published_one(result):
    _, embedding, outputs = result
    check_embedding(embedding, outputs)


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_and_scores_are_the_published_ones(result, kind):
    check_masks(*result, kind)
