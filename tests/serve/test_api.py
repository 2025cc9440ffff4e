"""Embedding, predicting and everything over HTTP, against the predictor."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.data.photograph import read_pixels
from pipeline.ops import masks
from pipeline.ops.outlines import polygons
from pipeline.runtime import EverythingSettings, Predictor, everything
from tests.serve.conftest import png

POINT = {"point_coords": [[40, 50]], "point_labels": [1]}
BOX = {"box": [10, 20, 70, 80]}


def embed(client, raw):
    answer = client.post("/v1/embed", content=raw, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def predict(client, image_id, prompts, **options):
    answer = client.post("/v1/predict", json={"image_id": image_id, "prompts": prompts, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def predictor(model):
    predictor = Predictor(model.segmenter)
    predictor.set_image(read_pixels(png(), "image").rgb)
    return predictor


def agree(ours, theirs):
    """The server upscales around the mask only; rounding may decide single pixels."""
    return np.mean(ours != theirs) < 1e-3


def test_an_image_is_kept_under_the_digest_of_its_bytes_and_encoded_once(client):
    first, again = embed(client, png()), embed(client, png())
    assert first == again
    assert first["size"] == [96, 96]
    assert first["stored"] is True
    text = base64.b64encode(png()).decode()
    assert client.post("/v1/embed", json={"image": text}).json() == first
    assert embed(client, png(seed=1))["image_id"] != first["image_id"]
    assert 'embedding_lookups_total{result="miss"} 2.0' in client.get("/metrics").text
    assert 'embedding_lookups_total{result="hit"} 2.0' in client.get("/metrics").text


def test_prompts_by_id_and_by_image_give_the_predictors_masks(client, predictor):
    by_id = predict(client, embed(client, png())["image_id"], [POINT, BOX])
    text = base64.b64encode(png()).decode()
    by_image = client.post("/v1/predict", json={"image": text, "prompts": [POINT, BOX]}).json()
    assert by_id == by_image
    best = predictor.predict_best(np.array([[[40, 50]]]), np.array([[1]]))
    box = predictor.predict_best(boxes=np.array([[10, 20, 70, 80]]))
    for (answer,), expected in zip(by_id["masks"], (best, box), strict=True):
        mask = masks.decode(answer["segmentation"])
        assert agree(mask, expected.masks[0])
        assert answer["predicted_iou"] == pytest.approx(float(expected.iou_predictions[0]), abs=1e-4)
        assert answer["area"] == mask.sum()
        x, y, width, height = answer["bbox"]
        assert masks.box(mask) == (x, y, x + width, y + height)


def test_a_batch_gives_what_each_prompt_gives_alone(client):
    image_id = embed(client, png())["image_id"]
    two = {"point_coords": [[40, 50], [3, 4]], "point_labels": [1, 0]}
    both = {**POINT, **BOX}
    prompts = [POINT, two, BOX, both, {**POINT, "point_coords": [[9, 9]]}]
    together = predict(client, image_id, prompts)["masks"]
    alone = [predict(client, image_id, [prompt])["masks"][0] for prompt in prompts]
    for (one,), (other,) in zip(together, alone, strict=True):
        assert agree(masks.decode(one["segmentation"]), masks.decode(other["segmentation"]))


def test_all_single_and_earlier_masks(client, predictor):
    image_id = embed(client, png())["image_id"]
    (three,) = predict(client, image_id, [POINT], masks="all", low_res_masks=True)["masks"]
    expected = predictor.predict(np.array([[40, 50]]), np.array([1]))
    assert [m["predicted_iou"] for m in three] == pytest.approx(expected.iou_predictions.tolist(), abs=1e-4)
    low = np.frombuffer(base64.b64decode(three[0]["low_res_mask"]), "<f2").reshape(expected.low_res_masks[0].shape)
    np.testing.assert_allclose(low, expected.low_res_masks[0], rtol=2e-3, atol=2e-2)
    ((single,),) = predict(client, image_id, [POINT], masks="single")["masks"]
    only = predictor.predict(np.array([[40, 50]]), np.array([1]), multimask_output=False)
    assert agree(masks.decode(single["segmentation"]), only.masks[0])
    given = {**POINT, "mask_input": three[0]["low_res_mask"]}
    ((refined,),) = predict(client, image_id, [given], masks="single")["masks"]
    again = predictor.predict(
        np.array([[40, 50]]), np.array([1]), mask_input=low.astype(np.float32)[None], multimask_output=False
    )
    assert agree(masks.decode(refined["segmentation"]), again.masks[0])
    predict(client, image_id, [{"mask_input": three[0]["low_res_mask"]}])


def test_the_formats_hold_the_same_mask(client):
    image_id = embed(client, png())["image_id"]
    ((rle,),) = predict(client, image_id, [BOX])["masks"]
    mask = masks.decode(rle["segmentation"])
    ((image,),) = predict(client, image_id, [BOX], format="png")["masks"]
    with Image.open(io.BytesIO(base64.b64decode(image["segmentation"]))) as opened:
        assert (np.asarray(opened.convert("L")) == np.where(mask, 255, 0)).all()
    ((outline,),) = predict(client, image_id, [BOX], format="polygons")["masks"]
    assert outline["segmentation"] == [polygon.ravel().tolist() for polygon in polygons(mask)]


def test_everything_streams_the_records_of_the_function(client, model):
    image_id = embed(client, png())["image_id"]
    thresholds = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    answer = client.post("/v1/everything", json={"image_id": image_id, **thresholds})
    first, *others, last = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert first == {"type": "image", "image_id": image_id, "size": [96, 96]}
    found = [line["mask"] for line in others if line["type"] == "mask"]
    assert last == {"type": "end", "masks": len(found)}
    settings = EverythingSettings(output_mode="coco_rle", **thresholds)
    expected = everything(Predictor(model.segmenter), read_pixels(png(), "image").rgb, settings=settings)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert agree(masks.decode(ours["segmentation"]), masks.decode(theirs["segmentation"]))
    assert others[0]["type"] == "progress"


def test_health_model_and_openapi(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert "self_check" in client.get("/readyz").json()
    assert client.get("/v1/model").json()["name"] == "efficientvit_sam_nano"
    schema = client.get("/openapi.json").json()
    for path in ("/v1/embed", "/v1/predict", "/v1/everything"):
        operation = schema["paths"][path]["post"]
        assert {"200", "413", "422", "429"} <= operation["responses"].keys()
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert schema["components"]["schemas"][reference.rpartition("/")[2]]["examples"]
