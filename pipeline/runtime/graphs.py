"""An encoder as CUDA graphs: its kernels start without the processor, one recording for each size of batch."""

from collections.abc import Callable
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor


def recorded(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same work as one CUDA graph; each replay writes its result over the one before.

    Args:
        call: Work on the current device whose inputs stay where they are in memory.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # libraries choose their algorithms and take their memory before the recording
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on with the decoder
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Graphs:
    """Replays recordings of ``forward``, one call at a time: a recording has one place for inputs and results.

    Args:
        forward: Images to embeddings, on a GPU.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self._forward, self._lock = forward, Lock()
        self._recordings = dict[tuple[int, ...], tuple[Tensor, Callable[[], Tensor]]]()

    def __call__(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """The embedding of a batch, in memory of its own."""
        with self._lock, torch.cuda.device(images.device):
            known = self._recordings.get(tuple(images.shape))
            if known is None:
                place = images.clone()
                known = self._recordings[tuple(images.shape)] = (place, recorded(lambda: self._forward(place)))
            place, replay = known
            place.copy_(images)
            result = replay().clone()
            torch.cuda.current_stream(images.device).synchronize()
        return result
