"""Average recall of class-agnostic masks, as COCO evaluates proposals.

Source: pycocotools' ``COCOeval`` with ``useCats = 0``: recall over all instances, averaged over IoU thresholds 0.50 to
0.95, with the ``n`` highest-scoring masks per image.
"""

from collections.abc import Mapping, Sequence

from faster_coco_eval import COCO, COCOeval_faster

from pipeline.ops.geometry import Size
from pipeline.ops.masks import Rle, area

MAX_MASKS = (100, 1000)
"""Numbers of highest-scoring masks per image."""


def average_recall(
    sizes: Sequence[Size], truths: Sequence[Sequence[Rle]], predictions: Sequence[Sequence[tuple[Rle, float]]]
) -> Mapping[int, float]:
    """Average recall at 100 and at 1,000 masks per image.

    Args:
        sizes: (H, W) of each image.
        truths: Ground-truth masks per image.
        predictions: Predicted masks per image, each with a score.

    Returns:
        Average recall in [0, 1] by number of masks.

    Raises:
        ValueError: There is no ground-truth mask.
    """
    if not any(truths):
        raise ValueError("average recall needs at least one mask in the ground truth")
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes, start=1)]
    truth = [(image, rle, 1.0) for image, rles in enumerate(truths, start=1) for rle in rles]
    answers = [(image, rle, score) for image, rles in enumerate(predictions, start=1) for rle, score in rles]
    if not answers:
        return dict.fromkeys(MAX_MASKS, 0.0)
    scorer = COCOeval_faster(_indexed(images, truth), _indexed(images, answers), "segm")
    scorer.params.useCats = 0
    scorer.params.maxDets = [1, *MAX_MASKS]
    scorer.evaluate()
    scorer.accumulate()
    recall = scorer.eval["recall"][:, 0, 0]  # all sizes; (thresholds, len(MAX_MASKS) + 1)
    return {number: float(recall[:, i].mean()) for i, number in enumerate(MAX_MASKS, start=1)}


def _indexed(images: list[dict[str, int]], masks: Sequence[tuple[int, Rle, float]]) -> COCO:
    annotations = [
        {"id": i, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": float(area(rle))}
        | {"score": score}
        for i, (image, rle, score) in enumerate(masks, start=1)
    ]
    return COCO({"images": images, "categories": [{"id": 1}], "annotations": annotations})
