"""Published ImageNet weights of EfficientNet-Lite0 as weights of `pipeline.models.efficientnet_lite`."""

import re
from pathlib import Path

import torch
from torch import Tensor

from pipeline.core.untrusted import tensor_file
from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD

_TFLITE_MEAN, _TFLITE_SCALE = 127.0, 128.0
_BLOCKS_BEFORE = (0, 1, 3, 5, 8, 11, 15)
"""Number of the first block of each stage."""
_PARTS = {
    "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
    "_project_conv": "project.0", "_bn2": "project.1",
}  # fmt: skip


def trunk_state(path: Path) -> dict[str, Tensor]:
    """Convert published weights to the keys of `EfficientNetLite`, and to pixels normalised as SAM does.

    The published model takes ``(x - 127) / 128``. Scale and offset are folded into the stem and its batch norm.
    """
    published = tensor_file.read(path, remedy="get the published file")
    state = {_key(key): value for key, value in published.items() if _key(key)}
    std, mean = torch.tensor(PIXEL_STD), torch.tensor(PIXEL_MEAN)
    kernel = state["stem.0.weight"]
    offset = (kernel.sum(dim=(2, 3)) * (mean - _TFLITE_MEAN) / _TFLITE_SCALE).sum(dim=1)
    state["stem.1.running_mean"] = state["stem.1.running_mean"] - offset
    state["stem.0.weight"] = kernel * (std / _TFLITE_SCALE)[:, None, None]
    return state


def _key(published: str) -> str:
    """Key of `EfficientNetLite` for a published key; empty for the last stage and the classifier."""
    stem = re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", published)
    if stem:
        return f"stem.{0 if stem[1] == '_conv_stem' else 1}.{stem[2]}"
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", published)
    if not block or int(block[1]) >= _BLOCKS_BEFORE[-1]:
        return ""
    stage = max(s for s, first in enumerate(_BLOCKS_BEFORE) if first <= int(block[1]))
    return f"stages.{stage}.{int(block[1]) - _BLOCKS_BEFORE[stage]}.{_PARTS[block[2]]}.{block[3]}"
