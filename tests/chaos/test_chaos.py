"""A few faults of each kind with fixed seeds; `make chaos` injects more."""

import pytest

from tests.chaos.__main__ import SCENARIOS
from tests.chaos.checkout import Reference, real

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference.make(tmp_path_factory.mktemp("chaos"), real)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_rerun_after_a_fault_gives_the_same_results(reference, name):
    rounds = 6 if name == next(iter(SCENARIOS)) else 1
    assert len(list(SCENARIOS[name](reference, 0, rounds))) == rounds
