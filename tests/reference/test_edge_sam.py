"""Our EdgeSAM is the published function and takes the published checkpoints (see parity/README.md)."""

import pytest

from tests.reference.published import PROMPTS, check_embedding, check_keys, check_masks, encoded, rebuilt

NAME = "edge_sam"


@pytest.fixture(scope="module")
def result():
    return encoded(rebuilt(NAME), NAME)


def test_state_dict_has_the_published_keys_shapes_and_types():
    check_keys(NAME, NAME)


def test_image_embedding_is_the_published_one(result):
    _, embedding, outputs = result
    check_embedding(embedding, outputs)


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_and_scores_are_the_published_ones(result, kind):
    check_masks(*result, kind)
