import pytest

from pipeline.core.errors import InputError
from pipeline.data.workers import in_processes


def double(number):
    if number == 13:
        raise InputError("thirteen.jpg is damaged")
    return 2 * number


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_an_error_is_handed_over(processes):
    found = in_processes(double, [*range(13), *range(20, 24), 13], processes)
    assert [next(found) for _ in range(16)] == [2 * i for i in [*range(13), *range(20, 23)]]
    with pytest.raises(InputError, match="thirteen"):
        list(found)


def test_results_are_made_as_they_are_asked_for():
    made = []
    found = in_processes(made.append, range(10))
    next(found)
    assert made == [0]
