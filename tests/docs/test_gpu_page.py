"""docs/gpu.md has the table that ``plan`` prints."""

from pipeline.plan import estimate
from pipeline.plan.report import markdown
from tests.docs.pages import ROOT

PRESET = "efficientvit_sam_l0_sa1b"


def test_the_table_is_what_plan_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/gpu.md").read_text()
    table = markdown(estimate(PRESET, gpus=(1, 8), cores=None, images=None))
    assert table in page, f"copy the table of `python -m pipeline plan --preset {PRESET}` to docs/gpu.md"
