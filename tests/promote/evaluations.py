"""Results per instance, as evaluations leave them, with known differences."""

import numpy as np

from pipeline.promote.instances import Instances

DATA = {"": {"name": "validation", "digest": "d" * 64, "protocol": "published"}}


def truth(rng, images=40, instances=400):
    """Images, areas in pixels and mIoU of a perfect twin: as the demo's, by image alike and by instance spread."""
    image = np.sort(rng.integers(0, images, instances))
    area = np.exp(rng.normal(np.log(3000), 1.4, instances))
    own = {prompt: rng.beta(5, 2, instances) for prompt in ("box", "click")}
    return image, area, own


def model(rng, world, drop=0.0, by_image=0.02, by_instance=0.04):
    """A model on it: the truth with noise that instances of an image share in part, less ``drop``."""
    image, area, own = world
    count = len(image)
    table = {"set": np.array([""] * count), "image_id": image, "annotation_id": np.arange(count), "area": area}
    for prompt, ious in own.items():
        noise = rng.normal(0, by_image, image.max() + 1)[image] + rng.normal(0, by_instance, count)
        table[f"{prompt}_iou"] = np.clip(ious + noise - drop, 0, 1)
    return Instances(DATA, table)
