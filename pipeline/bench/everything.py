"""Time of everything mode on one image: segment-anything's generator, and ours, dense and hierarchical.

With random weights, the published thresholds would drop every mask, and with it half of the work. So predicted IoUs are
shifted and the two thresholds on logits chosen such that about as many masks pass as with the bundled teacher at a
predicted IoU and a stability of 0.4: half of the masks by predicted IoU, three quarters of these by stability, and a
first round that covers 0.7 of the image. Masks of random weights span the image, so one remains in the end.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam as PublishedSam
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.decoder import Decoder, macs_per_prompt, ours, published
from pipeline.bench.engines import Exported, files_mib, model, refuses_decoding, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.data.scenes import render
from pipeline.models.cost import count_parameters, macs
from pipeline.models.sam import Sam
from pipeline.runtime import EverythingSettings, Predictor, Segmenter, everything, load
from pipeline.runtime.everything import MODES
from pipeline.runtime.everything.grid import coarse_points, point_grid

IMAGE_PX = 512
PASS_IOU, PASS_STABILITY, COVERED = 0.5, 0.75, 0.7
OWN = {"output_mode", "coarse_stride", "confident_logit"}
"""Settings that segment-anything's generator lacks, or that are passed explicitly."""


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    sam = model(settings, student)
    image = render(np.random.default_rng(0), IMAGE_PX).image
    asked = realistic(sam, image, settings.points)
    encoder, points = macs(sam)["encoder"], settings.points**2
    exported = Exported(sam, student, combinations, directory)
    candidates = list[Candidate]()

    def add(way: str, call: Callable[[], list[Any]], decoded: int, decoder: Decoder, size_mib: float) -> None:
        cost = encoder + decoded * macs_per_prompt(sam, decoder, min(decoded, asked.points_at_once("cpu")))
        figures = {"points": float(decoded), "masks": float(len(call()))}
        candidates.append(
            Candidate(
                name=f"{student} {way}",
                runtime=runtime,
                precision=precision,
                call=call,
                batch=1,
                parameters=count_parameters(sam),
                gmacs=cost / 1e9,
                size_mib=size_mib,
                figures=lambda _: figures,
            )
        )

    for runtime, precision in combinations:
        if runtime == "torch":
            segmenter, size_mib = load(sam), weights_mib(sam)
            add("segment_anything", _published(sam, image, asked), points, published, size_mib)
        else:
            segmenter, files = exported.engine(runtime, precision, settings.threads)
            size_mib = sum(files_mib(files, part) for part in ("encoder", "decoder"))
        for mode in reversed(MODES):
            counted = Counted(segmenter)
            everything(Predictor(counted), image, mode, asked)
            add(mode, _ours(segmenter, image, mode, asked), counted.points, ours, size_mib)
    return candidates


class Counted:
    """A segmenter that counts the prompts it decodes."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.image_size, self.input_size = segmenter.image_size, segmenter.input_size
        self.embedding_size = segmenter.embedding_size
        self.points = 0

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        return self._segmenter.encode(images)

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        self.points += len(point_coords)
        return self._segmenter.decode(image_embedding, point_coords, point_labels, mask_input)


class PublishedEncoder(nn.Module):
    """An image encoder in the interface of segment-anything's predictor: its input is the prompt frame.

    Args:
        sam: The model; if its encoder reads a smaller frame, the input is resized.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.encoder, self.img_size, self.input_size = sam.image_encoder, sam.image_size, sam.input_size

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """Compute image embeddings."""
        if self.input_size != self.img_size:
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        return self.encoder(images)


def generator(sam: Sam, asked: EverythingSettings) -> SamAutomaticMaskGenerator:
    """segment-anything's generator with the same parameters and its own number of points per batch."""
    whole = PublishedSam(PublishedEncoder(sam), sam.prompt_encoder, sam.mask_decoder).eval()
    return SamAutomaticMaskGenerator(whole, **asked.model_dump(exclude=OWN), output_mode="coco_rle")


def realistic(sam: Sam, image: UInt8[np.ndarray, "h w 3"], points: int) -> EverythingSettings:
    """Choose settings by which a realistic share of masks passes; shifts ``sam``'s predicted IoUs accordingly."""
    asked = EverythingSettings(points_per_side=points, output_mode="coco_rle", coarse_stride=2)
    predictor = Predictor(load(sam))
    predictor.set_image(image)
    per_side = min(points, 16)  # a coarser grid is enough
    coarse = point_grid(per_side, predictor.original_size)[coarse_points(per_side, asked.coarse_stride)]
    answer = predictor.predict_batch(coarse[:, None], np.ones((len(coarse), 1)))
    middle = float(np.quantile(answer.iou_predictions, 1 - PASS_IOU))
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.add_(asked.pred_iou_thresh - middle)
    kept = answer.low_res_masks[answer.iou_predictions > middle]
    offsets = np.abs(kept).max() * np.geomspace(1e-4, 1, 30)
    passing = [float(np.mean(_stability(kept, offset) >= asked.stability_score_thresh)) for offset in offsets]
    offset = float(offsets[int(np.abs(np.array(passing) - PASS_STABILITY).argmin())])
    stable = kept[_stability(kept, offset) >= asked.stability_score_thresh]
    highest = (stable if len(stable) else kept).max(axis=0)
    confident = max(float(np.quantile(highest, 1 - COVERED)), 1e-6)
    return asked.model_copy(update={"stability_score_offset": offset, "confident_logit": confident})


def _stability(logits: Float[np.ndarray, "n m m"], offset: float) -> Float[np.ndarray, " n"]:
    inner, outer = ((logits > cutoff).sum(axis=(1, 2)) for cutoff in (offset, -offset))
    return inner / np.maximum(outer, 1)


def _published(sam: Sam, image: UInt8[np.ndarray, "h w 3"], asked: EverythingSettings) -> Callable[[], list[Any]]:
    theirs = generator(sam, asked.model_copy(update={"points_per_batch": 64}))
    return lambda: theirs.generate(image)


def _ours(
    segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"], mode: str, asked: EverythingSettings
) -> Callable[[], list[Any]]:
    return lambda: everything(Predictor(segmenter), image, mode, asked)


SUBJECT = Subject(
    says="everything mode of one image: segment_anything's own generator, ours dense and hierarchical",
    unit="one image",
    refuses=refuses_decoding,
    build=_build,
)
