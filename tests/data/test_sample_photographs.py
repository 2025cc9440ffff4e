import pytest

from pipeline.core.errors import InputError
from pipeline.data import sample_photographs


@pytest.mark.parametrize("name", sample_photographs.CREDITS)
def test_the_photographs_are_those_of_scikit_learn(name):
    assert sample_photographs.read(name).shape == (427, 640, 3)


def test_one_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"none.jpg does not exist: install scikit-learn"):
        sample_photographs.read("none.jpg")
