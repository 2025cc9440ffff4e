"""A registered model predicts like the artifact that was registered."""

import json

import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.core.artifact import Card, Contents
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.promote import registry
from pipeline.tracking import Store

NANO = "efficientvit_sam_nano"


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A folder with a store whose model ``m`` has a champion, the artifact, and an image."""
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_checkpoint(build(NANO, seed=1), checkpoint)
    Card.seal(checkpoint, Contents(kind="checkpoint", model=NANO, precision="fp32"), {})
    store = Store.open()
    run = store.start("register", {})
    with registry.as_default(store.uri), mlflow.start_run(run_id=run):
        version = registry.log_model("m", checkpoint, {"box_miou": 0.5}, {"digest": "0"})
    store.client.set_registered_model_alias("m", "champion", version)
    store.client.create_registered_model("foreign")
    store.client.create_model_version("foreign", str(checkpoint), run)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save("image.png")
    (tmp_path / "boxes.json").write_text(json.dumps([{"file_name": "image.png", "bbox": [3, 4, 30, 30]}]))
    return tmp_path


def predicted(model, out, code=0):
    assert main(["predict", model, "image.png", "--boxes", "boxes.json", "--out", out, "--threads", "1"]) == code


def test_an_alias_and_a_version_give_the_masks_of_the_artifact(registered, capsys):
    for model, out in (("checkpoint", "a"), ("models:/m@champion", "b"), ("models:/m/1", "c")):
        predicted(model, out)
    results = [(registered / out / "instances.json").read_bytes() for out in "abc"]
    assert results[0] == results[1] == results[2]
    assert json.loads((registered / "b/predict.json").read_text())["model"]["name"] == NANO
    capsys.readouterr()
    for model, says in (
        ("models:/m@another", "has no models:/m@another"),
        ("models:/m/7", "has no models:/m/7"),
        ("models:/absent@champion", "has no models:/absent@champion"),
        ("models:/m", "is not a registered model: give models:/NAME@ALIAS"),
        ("models:/foreign/1", "models:/foreign/1"),
    ):
        predicted(model, "d", code=2)
        error = capsys.readouterr().err
        assert says in error
        assert error.splitlines()[-1].startswith("error: ")
    assert not (registered / "d").exists()
