"""Some cases of each kind with fixed seeds; `make fuzz` runs more."""

from tests.fuzz.child import KINDS
from tests.fuzz.runner import execute

_CASES = 40
_SLOW_KINDS = {"served model": 20, "params text": 12, "params values": 12}
"""Fewer cases of what takes long each."""


def test_hostile_input_is_accepted_or_refused_in_one_line():
    cases = [(kind, seed) for kind in KINDS for seed in range(_SLOW_KINDS.get(kind, _CASES))]
    outcomes = list(execute(cases))
    assert [case for case in outcomes if case[2] == "fault"] == []
    assert len(outcomes) == len(cases)
