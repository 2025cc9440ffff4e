"""The study of quantization methods: its table, and what it refuses."""

import pytest

from pipeline.bench.ablations.quantization import METHODS, WIDTHS, quantization, table
from pipeline.bench.ablations.settings import QuantizationSettings
from pipeline.core.errors import InputError


def row(seed, box, method="max"):
    return {
        "student": "tinysam_nano", "method": method, "width": "w6a6", "seed": seed, "attention": False,
        "box_miou": box, "click_miou": 0.25,
    }  # fmt: skip


def test_the_table_has_the_mean_over_seeds_and_the_largest_distance_from_it():
    text = table([row(0, 0.5), row(1, 0.52), row(2, 0.51), row(0, 0.6, "search")])
    assert "| tinysam_nano | w6a6 | max | no | 51.00 ± 1.00 | 25.00 ± 0.00 | 3 |" in text
    assert "| tinysam_nano | w6a6 | search | no | 60.00 ± 0.00 | 25.00 ± 0.00 | 1 |" in text


@pytest.mark.parametrize(("what", "known"), [("methods", METHODS), ("widths", WIDTHS)])
def test_unknown_names_list_the_known_ones(what, known):
    settings = QuantizationSettings(**{"students": ("tinysam_nano",), what: ("other",)})
    with pytest.raises(InputError, match=f"unknown {what[:-1]} 'other': there is {', '.join(known)}"):
        quantization(settings)


def test_rows_in_the_file_are_not_measured_again(tmp_path):
    import json

    out = tmp_path / "study.jsonl"
    fp32 = row(0, 0.55, "fp32") | {"width": "fp32"}
    out.write_text("".join(json.dumps(r) + "\n" for r in (fp32, row(0, 0.5))))
    settings = QuantizationSettings(
        students=("tinysam_nano",), methods=("max",), widths=("w6a6",), seeds=(0,),
        checkpoints=tmp_path / "absent", dataset=tmp_path / "absent", out=out,
    )  # fmt: skip
    text = table(quantization(settings))
    assert "| tinysam_nano | w6a6 | max | no | 50.00 ± 0.00" in text
