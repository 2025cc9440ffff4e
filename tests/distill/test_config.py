import pytest

from pipeline.core.config import section
from pipeline.core.errors import InputError
from pipeline.distill.config import DistillConfig

OPTIMIZER = {"steps": 4, "lr": 0.1, "warmup_steps": 1, "cooldown_steps": 1}


def read(options):
    values = {"recipe": {"kind": "embedding"}, "optimizer": OPTIMIZER, "options": options}
    return section({"distill": {"a": values}}, "distill.a", DistillConfig)


@pytest.mark.parametrize(
    "attention",
    ["junk", 3, None, {"a": 1}, [[]], [[[128]]], [[[128, 2, 2]]], [[[128, "2"]]], [[[128, 2.0]]], [[[128, 0]]],
     [[[128, True]]], [[[1 << 40, 2]]]],
    ids=repr,
)  # fmt: skip
def test_junk_in_the_option_attention_is_refused_when_params_are_read(attention):
    with pytest.raises(InputError, match=r"key 'options' is .*attention must list pairs") as refused:
        read({"attention": attention})
    assert "\n" not in str(refused.value)


def test_pairs_for_each_block_are_read():
    assert read({"attention": [[[128, 2]], [[64, 1], [32, 2]]]}).options["attention"][1] == [[64, 1], [32, 2]]
