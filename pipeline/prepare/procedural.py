"""Rendered scenes as samples, each with its own seed: results do not depend on the number of worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data import scenes
from pipeline.data.coco import NO_CATEGORY, Instance
from pipeline.data.photograph import encode_jpeg
from pipeline.ops import masks
from pipeline.prepare.sample import Item, Prepared, prepared
from pipeline.prepare.sources import Procedural

SPLITS = ("train", "calibration", "validation")


@dataclass(frozen=True)
class SceneItem:
    """One scene to render."""

    split: str
    index: int
    seed: int
    side_px: int
    jpeg_quality: int

    @property
    def key(self) -> str:
        """Split and number, unique in the dataset."""
        return f"{self.split}_{self.index:07d}"

    def prepare(self) -> Prepared:
        """Render the scene. Masks are exact: JPEG does not affect them."""
        seeds = np.random.SeedSequence([self.seed, SPLITS.index(self.split), self.index])
        scene = scenes.render(np.random.default_rng(seeds), self.side_px)
        instances = [
            Instance(number, NO_CATEGORY, masks.encode(mask))
            for number, mask in enumerate(scene.masks, start=1)
            if mask.any()
        ]
        jpeg = encode_jpeg(Image.fromarray(scene.image), self.jpeg_quality)
        return prepared(self.key, jpeg, (self.side_px, self.side_px), self.index + 1, instances)


def items(source: Procedural) -> Mapping[str, list[Item]]:
    """List the scenes of each split."""
    counts = {"train": source.train, "calibration": source.calibration, "validation": source.validation}
    return {
        split: [SceneItem(split, i, source.seed, source.side_px, source.jpeg_quality) for i in range(counts[split])]
        for split in SPLITS
    }
