"""Average recall of masks that have no category, as COCO measures proposals.

Source: pycocotools' ``COCOeval`` with ``useCats = 0``: recall over all instances, averaged over IoU thresholds 0.50 to
0.95, where each image counts its ``n`` masks of the highest score.
"""

from collections.abc import Mapping, Sequence

from faster_coco_eval import COCO, COCOeval_faster

from pipeline.ops.geometry import Size
from pipeline.ops.masks import Rle, area

AT = (100, 1000)
"""Masks per image that count."""


def average_recall(
    sizes: Sequence[Size], truths: Sequence[Sequence[Rle]], found: Sequence[Sequence[tuple[Rle, float]]]
) -> Mapping[int, float]:
    """Average recall at 100 and at 1,000 masks.

    Args:
        sizes: Height and width of each image.
        truths: Of each image the masks to be found.
        found: Of each image the masks that were found, with a score.

    Returns:
        By the number of masks, in [0, 1].

    Raises:
        ValueError: There is no mask to be found.
    """
    if not any(truths):
        raise ValueError("average recall needs at least one mask to be found")
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes, start=1)]
    truth = [(image, rle, 1.0) for image, rles in enumerate(truths, start=1) for rle in rles]
    answers = [(image, rle, score) for image, rles in enumerate(found, start=1) for rle, score in rles]
    if not answers:
        return dict.fromkeys(AT, 0.0)
    scorer = COCOeval_faster(_indexed(images, truth), _indexed(images, answers), "segm")
    scorer.params.useCats = 0
    scorer.params.maxDets = [1, *AT]
    scorer.evaluate()
    scorer.accumulate()
    recall = scorer.eval["recall"][:, 0, 0]  # of all sizes: thresholds x numbers of masks
    return {number: float(recall[:, i].mean()) for i, number in enumerate(AT, start=1)}


def _indexed(images: list[dict[str, int]], masks: Sequence[tuple[int, Rle, float]]) -> COCO:
    annotations = [
        {"id": i, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": float(area(rle))}
        | {"score": score}
        for i, (image, rle, score) in enumerate(masks, start=1)
    ]
    return COCO({"images": images, "categories": [{"id": 1}], "annotations": annotations})
