import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline import plan as planning
from pipeline.cli import app
from pipeline.core.config import read_params
from pipeline.core.errors import InputError
from pipeline.embed import SPLITS
from pipeline.models import build
from pipeline.models.cost import macs
from pipeline.plan import disk, fit, report
from pipeline.plan.rates import Used, table
from pipeline.plan.time import Clock, Machine
from pipeline.plan.workload import model_size, read

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
SA1B = [name for name in PRESETS if name.endswith("_sa1b")]
L0 = "efficientvit_sam_l0_sa1b"


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM_DISTILLERY_STORE", raising=False)
    return tmp_path


def work(preset, **changes):
    params = read_params(Path("presets", f"{preset}.yaml"))
    for name, values in changes.items():
        params[name] = (params[name] or {}) | values
    return read(params, Path(f"{preset}.yaml"))


def estimate(preset, **arguments):
    return planning.estimate(preset, **({"gpus": (1, 8), "cores": None, "images": None} | arguments))


@pytest.mark.parametrize("name", [*SA1B, "demo"])
def test_every_preset_has_a_plan(name):
    result = estimate(name)
    for scale in result.scales:
        assert all(size >= 0 for size in result.bytes[scale.name].values())
        for seconds in result.seconds[scale.name]:
            assert set(seconds) < set(result.bytes[scale.name])
            assert all(value is None or (math.isfinite(value) and value >= 0) for value in seconds.values())
            refused = [stage for stage, value in seconds.items() if value is None]
            assert all(any(f"{scale.name}: {stage} cannot run" in r for r in result.refusals) for stage in refused)


def test_a_stage_that_has_too_few_images_is_said_and_the_others_are_planned():
    result = estimate("edge_sam_sa1b")
    assert result.seconds["1 tar"][0]["distill"] is None
    assert result.seconds["1 tar"][0]["embed"] > 0
    assert "fewer than warmup_steps" in report.as_text(result, table())


def test_a_plan_is_for_one_tar_one_percent_and_all_of_sa1b_on_1_and_8_gpus():
    result = estimate(L0)
    assert {scale.name: scale.images for scale in result.scales} == {"1 tar": 11185, "1 %": 111853, "100 %": 11185362}
    assert [machine.gpus for machine in result.machines] == [1, 8]
    assert estimate("demo").machines[0].gpus == 0


@pytest.mark.parametrize("layers", [[], [0, 3]])
@pytest.mark.parametrize("images", [5, 9])
def test_the_store_is_exact_to_the_byte(tmp_path, layers, images):
    teacher, folder = build("bundled").eval(), tmp_path / "store"
    folder.mkdir()
    shapes = {"embeddings": model_size("bundled", {}).embedding_shape}
    if layers:
        asked = work("demo_from_scratch", embed={"feature_layers": layers})
        shapes = disk._shapes(asked)
    assert shapes["embeddings"] == (256, teacher.embedding_size, teacher.embedding_size)
    tensors = {name: torch.zeros(images, *shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "a.safetensors")
    assert disk.safetensors_bytes(shapes, images) == (folder / "a.safetensors").stat().st_size


def test_an_embedding_of_vit_h_is_2_mib_and_six_layers_60_mib_more():
    scale = work(L0).scales(None)[0]
    plain = disk.embedding_bytes(work(L0), scale)
    layered = disk.embedding_bytes(work("sam_lightening_sa1b"), scale)
    assert plain // scale.images == 2 << 20
    assert layered // scale.images == 62 << 20
    assert SPLITS == ("train", "calibration")  # the validation split is not embedded


def test_sizes_of_models_are_those_of_the_models():
    size, sam = model_size("tinysam_nano", {}), build("tinysam_nano")
    assert size.parameters == sum(p.numel() for p in sam.parameters())
    assert size.encoder_gmacs == macs(sam)["encoder"] / 1e9


def test_a_cache_of_links_holds_each_result_once(checkout):
    scale = work(L0).scales(None)[0]
    copied = disk.bytes_of(work(L0), scale)["prepare"]
    (checkout / ".dvc").mkdir()
    (checkout / ".dvc/config").write_text("[cache]\n    type = hardlink,symlink\n")
    assert disk.bytes_of(work(L0), scale)["prepare"] * 2 == copied


def test_epochs_grow_with_the_images_and_steps_do_not():
    one, hundred = (estimate("tinysam_sa1b", images=images).seconds for images in (10_000, 1_000_000))
    one, hundred = (next(iter(part.values()))[0]["distill"] for part in (one, hundred))
    assert hundred / one == pytest.approx(100, rel=0.1)
    one, hundred = (estimate(L0, images=images).seconds for images in (10_000, 1_000_000))
    assert next(iter(one.values()))[0]["distill"] == next(iter(hundred.values()))[0]["distill"]


def test_only_stages_that_share_their_work_gain_from_more_gpus():
    asked = work(L0)
    scale = asked.scales(None)[1]
    one, eight = (Clock(asked, Machine(gpus, 96), Used()).seconds(scale) for gpus in (1, 8))
    assert one["export"] == eight["export"]
    assert one["distill"] > eight["distill"]


def test_a_training_waits_for_its_slowest_part():
    asked = work("tinysam_sa1b")
    scale = asked.scales(None)[1]
    few, many = (Clock(asked, Machine(8, cores), Used()).seconds(scale)["distill"] for cores in (1, 1000))
    images = 8 * asked.train_images(scale)
    assert few == pytest.approx(images / table().rates["cpu.loading.full_stage"].value, rel=0.01)
    assert many < few


def test_every_rate_says_where_it_is_from():
    for name, rate in table().rates.items():
        assert name.startswith(("gpu.", "cpu."))
        assert rate.origin
        assert rate.hardware
        if rate.source == "measured":
            assert "bench" in rate.origin or "loader" in rate.origin or "cpu." in rate.origin


def test_the_report_says_that_no_rate_of_a_gpu_was_measured():
    result = estimate(L0)
    text = report.as_text(result, table())
    measured = any(table().rates[name].source == "measured" for name in result.rates if name.startswith("gpu."))
    assert ("No rate of a GPU was measured" in text) is not measured
    assert all(f"| {name} " in text for name in result.rates)


def test_the_report_says_what_the_disk_lacks(monkeypatch):
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**11))
    text = planning.plan(preset=L0, gpus=(1,), cores=None, images=None, fit=False, as_json=False)
    assert text.splitlines()[-1].startswith("100 %: the disk of data/sa1b needs 57.")
    assert "100 GB free" in text


def test_tars_that_are_there_are_not_missing(checkout, monkeypatch):
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 0))
    before = estimate(L0).missing["1 tar"][0]
    (checkout / "data/sa1b").mkdir(parents=True)
    with (checkout / "data/sa1b/sa_000000.tar").open("wb") as stream:
        stream.truncate(11_000_000_000)  # sparse
    assert estimate(L0).missing["1 tar"][0] != before


def test_json_has_the_same_numbers():
    result = estimate(L0, gpus=(1,))
    printed = json.loads(planning.plan(preset=L0, gpus=(1,), cores=None, images=None, fit=False, as_json=True))
    assert printed["bytes"] == result.bytes
    assert printed["seconds"] == result.seconds
    assert set(printed["rates"]) == set(result.rates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "nothing"}, "does not exist; there is .*demo"),
        ({"preset": "coco"}, "data/coco/images does not exist.*--images NUMBER"),
        ({"preset": L0, "gpus": ()}, "--gpus must list"),
        ({"preset": None}, "preset demo"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        estimate(**arguments)


def test_fit_lists_every_preset_and_what_it_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    results = {result.preset: result for result in fit.fits()}
    assert sorted(results) == PRESETS
    assert {"no GPU", "data/sa1b does not exist"} <= set(results[L0].lacks)
    assert not any("GPU" in reason for reason in results["demo"].lacks)
    assert json.loads(fit.text(list(results.values()), as_json=True))[0]["preset"] == PRESETS[0]


def test_a_small_gpu_is_said(monkeypatch):
    properties = SimpleNamespace(total_memory=8_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert fit._gpu() == ["needs about 16.0 GB of GPU memory, there is 8.00 GB"]
    properties.total_memory = 80_000_000_000
    assert fit._gpu() == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999 B"), (23_456_789_000, "23.5 GB"), (999_400_000, "999 MB"), (2_000_000_000_000, "2.00 TB")],
)
def test_sizes_have_three_digits(value, text):
    assert report.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (59.0, "59 s"), (120.0, "2.0 min"), (6000.0, "1.7 h"), (1e6, "12 d")]
)
def test_durations_have_two_digits(value, text):
    assert report.duration(value) == text


def test_the_command_prints_a_table():
    done = CliRunner().invoke(app, ["plan", "--preset", L0, "--gpus", "2"])
    assert done.exit_code == 0, done.output
    assert "2 GPUs, 1 tar" in done.output
