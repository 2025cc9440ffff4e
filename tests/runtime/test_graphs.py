"""CUDA graphs on two GPUs, by a stand-in for torch's streams: a capture records what its own stream is given."""

from contextlib import contextmanager

import pytest
import torch

from pipeline.runtime.graphs import Graphs


class On0(torch.Tensor):
    """Claims to be on the first GPU."""

    device = property(lambda self: torch.device("cuda", 0))


class On1(torch.Tensor):
    """Claims to be on the second GPU."""

    device = property(lambda self: torch.device("cuda", 1))


class Cuda:
    """Torch's current device and streams; work is done at once, or recorded while its stream is captured."""

    def __init__(self):
        self.index, self.shared, self.capturing = 0, None, None
        self.streams = {index: Stream(self, index) for index in (0, 1)}

    @contextmanager
    def device(self, device):
        before, self.index = self.index, device.index
        yield
        self.index = before

    @contextmanager
    def stream(self, stream):
        before, self.streams[stream.index] = self.streams[stream.index], stream
        yield
        self.streams[stream.index] = before

    def current_stream(self, device=None):
        return self.streams[self.index if device is None else device.index]

    @contextmanager
    def graph(self, graph, stream=None, capture_error_mode="global"):
        if stream is None:  # one for the process, made by whoever captures first, as in torch.cuda.graph
            self.shared = stream = self.shared or Stream(self, self.index)
        with self.stream(stream):
            self.capturing = (graph, stream)
            yield
            self.capturing = None

    def launch(self, index, work):
        graph, captured = self.capturing or (None, None)
        if captured is self.streams[index]:
            graph.work.append(work)
        else:
            work()


class Stream:
    def __init__(self, cuda, index):
        self.cuda, self.index = cuda, index

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Graph:
    def __init__(self):
        self.work = []

    def replay(self):
        for work in self.work:
            work()


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    for name in ("device", "stream", "current_stream", "graph"):
        monkeypatch.setattr(f"torch.cuda.{name}", getattr(cuda, name))
    monkeypatch.setattr("torch.cuda.Stream", lambda: Stream(cuda, cuda.index))
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    return cuda


def test_a_second_gpu_replays_its_own_images(cuda):
    def encoder(images):
        embedding = torch.zeros(1, 256, 2, 2).as_subclass(type(images))
        cuda.launch(images.device.index, lambda: embedding.fill_(float(images.mean())))
        return embedding

    for kind in (On0, On1):
        graphs = Graphs(encoder)
        for value in (1.0, 2.0, 3.0):
            images = torch.full((1, 3, 8, 8), value).as_subclass(kind)
            assert float(graphs(images).mean()) == value, kind
