from pathlib import Path

import pytest

from pipeline.core.artifact import Card
from pipeline.core.bundled import ARTIFACTS, directory_of
from pipeline.core.errors import InputError
from pipeline.runtime import load


def test_other_sources_are_paths():
    assert directory_of("artifacts/align/tinysam_nano") == Path("artifacts/align/tinysam_nano")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="bundled:bundled_v2"):
        directory_of("bundled:vit_h")


@pytest.mark.parametrize("name", ARTIFACTS)
def test_bundled_artifacts_are_sealed_small_and_can_be_loaded(name):
    directory = directory_of(f"bundled:{name}")
    assert Card.verified(directory).model == name
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 15e6
    assert load(f"bundled:{name}").image_size == 512
