"""Where models are evaluated, with stand-ins for a GPU: nothing here runs on one."""

import numpy as np
import pytest
import torch

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.evaluate.device import evaluation_device
from pipeline.evaluate.latency import LatencyConfig, measure_latency
from pipeline.evaluate.timing import measure

CHECKPOINT = {"kind": "checkpoint"}
TENSORRT = {"kind": "engine", "load": {"engine": "tensorrt"}}
OPENVINO = {"kind": "engine", "load": {"engine": "openvino"}}


def card(of):
    return Card(**{"model": "tinysam", "precision": "fp32", "digest": "", "parents": {}} | of)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with GPUs, on which torch makes every tensor on the processor."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "pipeline.core.device.torch.empty", lambda *_, device: type("T", (), {"device": torch.device(device)})
    )


@pytest.mark.parametrize("rank", ["0", "5"])
@pytest.mark.parametrize(
    ("of", "name", "expected"),
    [
        (CHECKPOINT, "auto", "cuda:{}"),
        (CHECKPOINT, "cuda", "cuda:{}"),
        (CHECKPOINT, "cuda:1", "cuda:1"),
        (CHECKPOINT, "cpu", "cpu"),
        (TENSORRT, "auto", "cuda:{}"),
        (TENSORRT, "cpu", "cuda:{}"),
        (TENSORRT, "cuda:1", "cuda:1"),
        (OPENVINO, "auto", "cpu"),
        (OPENVINO, "cuda", "cpu"),
    ],
)
def test_each_process_evaluates_on_its_own_gpu(gpus, monkeypatch, of, name, expected, rank):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert evaluation_device(name, card(of)) == expected.format(rank)


def test_without_torchrun_it_is_the_first_gpu(gpus, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert evaluation_device("auto", card(CHECKPOINT)) == "cuda"
    assert evaluation_device("auto", card(TENSORRT)) == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_the_processor():
    assert evaluation_device("auto", card(CHECKPOINT)) == "cpu"
    assert evaluation_device("auto", card(TENSORRT)) == "cuda"  # whose runtime says what is missing
    with pytest.raises(InputError, match=r"evaluate\.device is 'cuda', which is not available"):
        evaluation_device("cuda", card(CHECKPOINT))


class Recorder:
    """A segmenter whose images must be on its device, the meta device for want of a GPU."""

    image_size = input_size = 64
    embedding_size = 4

    def __init__(self):
        self.devices = []

    def encode(self, images):
        self.devices.append(("encode", images.device.type))
        return torch.zeros(len(images), 256, 4, 4, device="meta")

    def decode(self, embedding, coords, labels, mask_input=None):
        self.devices.append(("decode", coords.device.type))
        return torch.zeros(1, 4, 16, 16), torch.zeros(1, 4)


def test_encoder_and_decoder_are_timed_without_copies_to_the_device(monkeypatch):

    timed = []

    def timing(part, clock, **_):
        part()
        timed.append(part)
        return measure(lambda: None, warmup=0, runs=1, max_foreign_load=1.0)

    monkeypatch.setattr("pipeline.evaluate.latency.measure", timing)
    segmenter = Recorder()
    measure_latency(
        segmenter, LatencyConfig(runs=1, batch=1), np.zeros((40, 64, 3), np.uint8), np.array([1, 2, 30, 31], np.float32)
    )
    assert segmenter.devices[1:3] == [("encode", "meta"), ("decode", "meta")]
    assert len(timed) == 4
