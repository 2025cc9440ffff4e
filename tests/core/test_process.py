import gc
import sys

import pytest

from pipeline.core import process


def test_garbage_is_collected_again_once_the_start_is_over():
    seen = []

    def fail():
        with process.starting():
            seen.append(gc.isenabled())
            raise ModuleNotFoundError

    with pytest.raises(ModuleNotFoundError):
        fail()
    assert (seen, gc.isenabled()) == ([False], True)
    gc.unfreeze()


def test_a_package_is_hidden_only_meanwhile_and_never_taken_from_who_has_it():
    sys.modules.pop("this", None)
    with process.without(["this", "sys"]):
        with pytest.raises(ModuleNotFoundError):
            import this  # noqa: F401
        assert sys.modules["sys"] is sys
    assert "this" not in sys.modules
    assert sys.modules["sys"] is sys
