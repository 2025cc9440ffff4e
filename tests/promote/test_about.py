"""What a registered version carries, and the way back from it."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml

from pipeline import promote
from pipeline.__main__ import main
from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.promote import about, lineage, publish, registry
from pipeline.promote.about import Subject
from pipeline.promote.instances import FP32, Instances, of_evaluation
from tests.promote.evaluations import model, truth

ORIGIN = {"commit": "abc", "dirty": False, "artifacts": []}
NUMBERS = {"box_miou": 0.7, "click_miou": 0.6, "latency_ms": 10.0, "latency_error_ms": 0.5, "size_mib": 3.0}


def card_of(engine, precision="int8"):
    load = {"engine": engine, "image_size": 256, "input_size": 256}
    return Card(kind="engine", model="tinysam_nano", precision=precision, load=load, digest="d", parents={})


def subject(results=None):
    return Subject(Path("engine"), card_of("openvino"), NUMBERS, "a processor", results, ORIGIN)


def test_a_processor_image_pulls_no_cuda_and_a_gpu_engine_its_tensorrt(tmp_path):
    lines = registry.requirements(tmp_path, card_of("openvino"))
    assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert any(line.startswith("openvino==") for line in lines)
    assert not any(line.startswith(("tensorrt", "onnxruntime")) for line in lines)
    (tmp_path / "engine.json").write_text('{"tensorrt": "10.16.1"}')
    lines = registry.requirements(tmp_path, card_of("tensorrt"))
    assert "tensorrt==10.16.1" in lines
    assert not any(line.startswith(("--", "openvino")) for line in lines)


def test_metrics_have_intervals_that_contain_them_within_0_and_1():
    rng = np.random.default_rng(0)
    own = model(rng, truth(rng))
    metrics = about.intervals(NUMBERS, own)
    assert metrics["latency_ms"] == {"value": 10.0, "low": 9.5, "high": 10.5}
    assert metrics["size_mib"] == {"value": 3.0}
    box = metrics["box_miou"]
    assert box["value"] == pytest.approx(own.table["box_iou"].mean())
    assert 0 <= box["low"] < box["value"] < box["high"] <= 1
    assert {"box_miou_small", "click_miou_large"} <= metrics.keys()
    assert about.intervals(NUMBERS, None)["box_miou"] == {"value": 0.7}


def test_the_model_card_is_one_that_the_hub_reads():
    from huggingface_hub import ModelCard

    rng = np.random.default_rng(0)
    own = subject(model(rng, truth(rng)))
    text = about.model_card(own, about.intervals(NUMBERS, own.results), about.preprocessing_of(own.card))
    card = ModelCard(text)
    assert (card.data.license, card.data.pipeline_tag, card.data.model_name) == (
        "apache-2.0", "mask-generation", "tinysam_nano-int8",
    )  # fmt: skip
    assert {result.metric_type for result in card.data.eval_results} >= {"box_miou", "latency_ms"}
    assert "| latency_ms | 10 | [9.5, 10.5] |" in text
    assert "`abc`" in text


def test_results_per_instance_are_read_from_evaluations_and_come_back_from_parquet(tmp_path):
    for name, box in (("int8", 0.5), ("fp32", 0.6)):
        rows = [
            {"image_id": i % 3, "annotation_id": i, "area": 10.0 * i, "box_iou": box, "box_predicted_iou": 0.1,
             "box_boundary_iou": 0.2}
            for i in range(9)
        ]  # fmt: skip
        for folder in (tmp_path / name, tmp_path / name / "lvis"):
            folder.mkdir(exist_ok=True)
            (folder / "instances.json").write_text(json.dumps(rows))
        datasets = {"": {"digest": "a", "protocol": "ours"}, "lvis_": {"digest": "b", "protocol": "ours"}}
        (tmp_path / name / "datasets.json").write_text(json.dumps(datasets | {"boxes_": {"digest": "c"}}))
    results = of_evaluation(tmp_path / "int8", tmp_path / "fp32")
    assert results.prompts == ["box"]
    assert results.data() == {"": ("a", "ours"), "lvis_": ("b", "ours")}
    results.write(tmp_path / "x.parquet")
    again = Instances.read(tmp_path / "x.parquet")
    assert again.identities() == [(s, i) for s in ("", "lvis_") for i in range(9)]
    assert (again.table[f"box_iou{FP32}"] == 0.6).all()
    assert (again.table["box_iou"] == 0.5).all()
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="x.parquet of the registered version cannot be read"):
        Instances.read(tmp_path / "x.parquet")


def test_a_registered_version_carries_what_explains_and_reproduces_it(built, monkeypatch, capsys):
    monkeypatch.chdir(built.root)
    promote.register()
    assert not capsys.readouterr().err
    promote.promote()
    version = built.client.get_model_version("tiny", "1")
    data = built.digest("prepare")
    assert (version.tags["data"], version.tags["runtime"], version.tags["license"]) == (data, "openvino", "apache-2.0")
    assert len(version.tags["instances"]) == 64
    uri = "models:/tiny@champion"

    content = lineage.lineage(uri)
    assert [entry["target"] for entry in content["artifacts"]] == ["prepare", "distill@small"]
    distilled = content["artifacts"][1]
    assert distilled["params"]["lr"] == "0.001"
    assert distilled["run"] == built.runs("distill@small")[0].info.run_id
    assert content["commit"] == distilled["commit"] != ""
    assert (content["aliases"], content["data"]) == (
        ["challenger", "challenger-cpu", "champion", "champion-cpu"], data,
    )  # fmt: skip
    logged = mlflow.MlflowClient(f"sqlite:///{built.root}/mlflow.db").get_logged_model(
        version.source.removeprefix("models:/")
    )
    assert logged.tags["run/distill@small"] == distilled["run"]
    assert main(["lineage", uri]) == 0
    shown = capsys.readouterr().out
    assert f"data        {data}" in shown
    assert "lr=0.001" in shown
    assert main(["lineage", "models:/tiny@another"]) == 2

    capsys.readouterr()
    assert main(["publish", "hf", "out", "--model", uri]) == 0
    assert "hf upload USER/NAME out" in capsys.readouterr().out
    out = built.root / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files >= {
        *("README.md", "LICENSE", "metrics.json", "preprocessing.json", "lineage.json", "instances.parquet"),
        *("params.yaml", "dvc.lock", "engine/card.json", "engine/model.txt", "plots/dot.png", ".gitattributes"),
    }
    head = (out / "README.md").read_text().split("---")[1]
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    with pytest.raises(InputError, match="out is not an empty folder"):
        publish.hf(uri, Path("out"))
