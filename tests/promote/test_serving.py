"""A registered model loads through MLflow, away from this tree, and answers what clients send."""

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.ops import masks
from pipeline.promote import registry
from pipeline.promote.registry import input_example

NANO = "efficientvit_sam_nano"
CLIENT = """
import json, sys
import mlflow
from mlflow.pyfunc.scoring_server import invocations
model = mlflow.pyfunc.load_model(sys.argv[1])
schema = model.metadata.get_input_schema()
for rows in json.loads(sys.argv[2]):
    answer = invocations(json.dumps({"dataframe_records": rows}), "application/json", model, schema)
    print(answer.response)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Where a model lies that was logged the way `register` does."""
    root = tmp_path_factory.mktemp("served")
    checkpoint = root / "checkpoint"
    checkpoint.mkdir()
    save_checkpoint(build(NANO), checkpoint)
    Card.seal(checkpoint, Contents(kind="checkpoint", model=NANO, precision="fp32"), {})
    with registry.as_default(f"sqlite:///{root / 'mlflow.db'}"):
        experiment = mlflow.create_experiment("served", artifact_location=(root / "mlruns").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            version = registry.log_model("m", checkpoint, {"box_miou": 0.5}, {"digest": "0"})
        registered = mlflow.MlflowClient().get_model_version("m", version)
        assert registered.tags == {"digest": "0"}
        assert registered.run_id is not None
        source = mlflow.artifacts.download_artifacts(f"models:/m/{version}", dst_path=str(root / "model"))
    return source


@pytest.fixture(scope="module")
def model(served):
    """The same in this process; MLflow puts its copy of the code on the path, and leaves it there."""
    paths = sys.path.copy()
    yield mlflow.pyfunc.load_model(served)
    sys.path[:] = paths


def test_a_server_elsewhere_answers_whole_numbers_and_rows_of_different_prompts(served, tmp_path):
    (example,) = input_example()
    box = {"image": example["image"], "box": [34, 18, 94, 78]}
    click = {"image": example["image"], "point_coords": [[64, 48.5]], "point_labels": [1]}
    requests = json.dumps([[example], [box], [box, click]])
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, served, requests], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line)["predictions"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert [len(rows) for rows in answers] == [1, 1, 2]
    assert answers[1][0] == answers[2][0]
    for row in (row for rows in answers for row in rows):
        assert masks.decode(row["masks"][0]).shape == (96, 128)
        assert len(row["iou_predictions"]) == 1


def test_making_a_store_the_default_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    state = lambda: (  # noqa: E731
        mlflow.is_tracking_uri_set(),
        mlflow.get_tracking_uri(),
        mlflow.get_registry_uri(),
        {name for name in os.environ if name.startswith("MLFLOW_")},
    )
    before = state()
    with registry.as_default(f"sqlite:///{tmp_path}/mlflow.db"):
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert state() == before


def test_the_model_carries_no_weights_but_its_own(served):
    assert [p.parent.name for p in Path(served).rglob("*.safetensors")] == ["checkpoint"]


def test_a_model_whose_files_were_changed_is_not_served(served, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    copy = shutil.copytree(served, tmp_path / "model")
    (weights,) = copy.rglob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="is damaged: its files have digest"):
        mlflow.pyfunc.load_model(str(copy))


def test_requests_at_once_get_the_answers_they_would_get_alone(model):
    rows = []
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 256, (40 + 8 * i, 64, 3), dtype=np.uint8)
        text = base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode("ascii")
        rows.append([{"image": text, "box": [4.0, 4.0, 50.0, 30.0]}])
    alone = [model.predict(row) for row in rows]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(model.predict, rows))
    for a, b in zip(alone, together, strict=True):
        first, second = (r.to_dict("records")[0] if hasattr(r, "to_dict") else r[0] for r in (a, b))
        assert first["masks"][0]["size"] == second["masks"][0]["size"]
        assert first["iou_predictions"] == pytest.approx(second["iou_predictions"], abs=1e-4)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "needs a box"),
        ({"point_coords": [[1.0, 2.0], [3.0]], "point_labels": [1, 1]}, "`point_coords` must be a list of numbers"),
        ({"box": [1.0, 2.0, 9.0, 9.0], "point_coords": [[1.0, 2.0]]}, "go together"),
        ({"image": "@@", "box": [1.0, 2.0, 9.0, 9.0]}, "base64"),
    ],
)
def test_a_malformed_row_is_refused_in_words(model, row, says):
    (example,) = input_example()
    with pytest.raises(Exception, match=says):
        model.predict([{"image": example["image"]} | row])


def png(width, height):
    """A PNG that states a size and holds one byte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    raw = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return base64.b64encode(raw).decode()


BOX = [1.0, 2.0, 9.0, 9.0]
HOSTILE = {
    "non-ASCII base64": ({"image": "\u00e9\u00e9\u00e9\u00e9", "box": BOX}, "`image` must be base64"),
    "no image": ({"image": None, "box": BOX}, "`image` must be base64"),
    "empty image": ({"image": "", "box": BOX}, "`image` must be base64"),
    "text as an image": ({"image": base64.b64encode(b"text").decode(), "box": BOX}, "not a readable JPEG or PNG"),
    "EPS as an image": ({"image": base64.b64encode(b"%!PS-Adobe-3.0").decode(), "box": BOX}, "not a readable JPEG"),
    "PNG above 2^30 pixels": ({"image": png(1 << 16, 1 << 16), "box": BOX}, "exceeds limit"),
    "batched boxes": ({"box": [BOX, BOX]}, "`box` must be a list of 4 numbers"),
    "box of 10^400": ({"box": [1.0, 2.0, 10**400, 9.0]}, "`box` must be a list of 4 numbers"),
    "box with infinity": ({"box": [1.0, 2.0, float("inf"), 9.0]}, "`box` must be a list of 4 numbers"),
    "box of text": ({"box": "1234"}, "`box` must be a list of 4 numbers"),
    "box as an object": ({"box": {"x": 1}}, "`box` must be a list of 4 numbers"),
    "box of true": ({"box": [True, True, True, True]}, "`box` must be a list of 4 numbers"),
    "batched points": ({"point_coords": [[[1.0, 2.0]]], "point_labels": [[1]]}, "`point_coords` must be"),
    "10,000 points": ({"point_coords": [[1.0, 2.0]] * 10_000, "point_labels": [1] * 10_000}, "may have 256 entries"),
    "label of 7": ({"point_coords": [[1.0, 2.0]], "point_labels": [7]}, "must be 1"),
    "deep points": ({"point_coords": [[[[[[[[1]]]]]]]], "point_labels": [1]}, "`point_coords` must be"),
}


@pytest.fixture(scope="module")
def own_class(model):
    return model.unwrap_python_model()


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_row_is_an_invalid_parameter_in_one_line(own_class, case):
    row, says = HOSTILE[case]
    (example,) = input_example()
    rows = [{"image": example["image"]} | {"point_coords": None, "point_labels": None, "box": None} | row]
    with pytest.raises(MlflowException, match=f"row 0 .*{says}") as refused:
        own_class.predict(None, pd.DataFrame(rows, dtype=object))
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    assert refused.value.get_http_status_code() == 400
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_request_of_10000_rows_is_refused_at_once(own_class):
    (example,) = input_example()
    with pytest.raises(MlflowException, match="may have 256 rows, not 10000"):
        own_class.predict(None, pd.DataFrame([example] * 10_000))


@pytest.mark.parametrize("values", [{"box": 10**400}, {"point_coords": []}, {"image": 3}, {"box": "x"}], ids=str)
def test_a_server_answers_a_bad_request_without_a_stack_trace(model, values):
    (example,) = input_example()
    request = json.dumps({"dataframe_records": [{"image": example["image"]} | values]})
    with pytest.raises(MlflowException) as refused:
        invocations(request, "application/json", model, model.metadata.get_input_schema())
    assert "Traceback" not in refused.value.serialize_as_json()
    assert refused.value.get_http_status_code() == 400
