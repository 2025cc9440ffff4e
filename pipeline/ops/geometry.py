"""Conversions between coordinate frames, for training, export and serving.

There are three frames. *original*: the pixels of an image, size (H, W). *prompt frame*: the square of side ``side``
(1024 for SAM) of points, boxes and upscaled masks; the image's longest side fills it, and the right or bottom is
padded. *input frame*: the encoder's input, the same square at the encoder's own side (512 for EfficientViT-SAM L).
Conventions and rounding are segment-anything's (``utils/transforms.py``, ``modeling/sam.py``).
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

Size = tuple[int, int]
"""Height and width, in pixels."""


def resized(size: Size, side: int) -> Size:
    """Height and width after scaling the longest side to ``side``; at least one pixel each."""
    scale = side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def resize_image(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Scale an RGB image's longest side to ``side``, with PIL's antialiased bilinear filter as in segment-anything."""
    height, width = resized(image.shape[:2], side)
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def to_input(image: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Tensor, "3 side side"]:
    """Preprocess an RGB image for the encoder: resize, normalise, then zero-pad at the right and bottom.

    Args:
        image: RGB, in the original frame.
        side: Side of the encoder's input, in pixels.
    """
    pixels = torch.from_numpy(np.array(resize_image(image, side), dtype=np.float32)).permute(2, 0, 1)
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    pixels = (pixels - mean) / std
    return F.pad(pixels, (0, side - pixels.shape[2], 0, side - pixels.shape[1]))


def padded(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Pad a resized RGB image with zeros at the right and bottom."""
    result = np.zeros((side, side, 3), np.uint8)
    result[: pixels.shape[0], : pixels.shape[1]] = pixels
    return result


def normalised(pixels: UInt8[Tensor, "b side side 3"], sizes: Int[Tensor, "b 2"]) -> Float[Tensor, "b 3 side side"]:
    """Finish on the device what `to_input` does, for `padded` images; the result is in channels-last memory format.

    Args:
        pixels: RGB.
        sizes: Height and width of each image without its padding.
    """
    mean, std = _statistics(pixels.device)
    side = torch.arange(pixels.shape[1], device=pixels.device)
    inside = side < sizes[:, :, None]
    valid = inside[:, 0, :, None, None] & inside[:, 1, None, :, None]
    return ((pixels.float() - mean) / std).masked_fill_(~valid, 0.0).permute(0, 3, 1, 2)


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, copied to a device once: each copy would wait for it."""
    return torch.tensor(PIXEL_MEAN, device=device), torch.tensor(PIXEL_STD, device=device)


def points_to_frame(points_original: Float[np.ndarray, "*n 2"], size: Size, side: int) -> Float[np.ndarray, "*n 2"]:
    """Convert points (x, y) of an image of ``size`` to the prompt frame of side ``side``."""
    height, width = resized(size, side)
    scale = np.array([width / size[1], height / size[0]], dtype=np.float64)
    return (np.asarray(points_original, dtype=np.float64) * scale).astype(np.float32)


def boxes_to_frame(boxes_original: Float[np.ndarray, "*n 4"], size: Size, side: int) -> Float[np.ndarray, "*n 4"]:
    """Convert boxes xyxy of an image of ``size`` to the prompt frame of side ``side``."""
    boxes = np.asarray(boxes_original)
    return points_to_frame(boxes.reshape(*boxes.shape[:-1], 2, 2), size, side).reshape(boxes.shape)


def masks_to_original(
    low_res_logits: Float[Tensor, "b c h w"], size: Size, side: int
) -> Float[Tensor, "b c height width"]:
    """Upscale mask logits from the padded low-resolution frame to the original frame.

    As segment-anything's ``postprocess_masks``: bilinear to the prompt frame, crop the padding, bilinear to ``size``.
    Threshold at 0 for a mask.
    """
    masks = F.interpolate(low_res_logits, (side, side), mode="bilinear", align_corners=False)
    height, width = resized(size, side)
    return F.interpolate(masks[..., :height, :width], size, mode="bilinear", align_corners=False)


def upscaling(size: Size, side: int, grid: int) -> tuple[Float[Tensor, "height grid"], Float[Tensor, "width grid"]]:
    """`masks_to_original` as matrices: ``rows @ low_res_logits @ columns.T`` for logits ``(grid, grid)``.

    Bilinear interpolation is separable, so the two consecutive interpolations are one product per axis.
    """
    units = torch.eye(grid)[:, None]
    frame = F.interpolate(units, side, mode="linear", align_corners=False)
    rows, columns = (
        F.interpolate(frame[..., :valid], extent, mode="linear", align_corners=False)[:, 0].T.contiguous()
        for valid, extent in zip(resized(size, side), size, strict=True)
    )
    return rows, columns


def masks_to_frame(masks_original: Float[Tensor, "b h w"], side: int, grid: int) -> Float[Tensor, "b grid grid"]:
    """Downscale masks in [0, 1] from the original frame to a ``grid`` x ``grid`` raster of the padded prompt frame.

    The inverse of `masks_to_original` up to resampling: antialiased, padding is 0.
    """
    size = (masks_original.shape[-2], masks_original.shape[-1])
    height, width = (max(1, round(extent * grid / side)) for extent in resized(size, side))
    small = F.interpolate(
        masks_original[:, None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return F.pad(small[:, 0], (0, grid - width, 0, grid - height))


def valid_cells(size: Size, grid: int) -> Size:
    """Rows and columns of a ``grid`` x ``grid`` raster of the padded frame that overlap an image of ``size``."""
    longest = max(size)
    return -(-size[0] * grid // longest), -(-size[1] * grid // longest)
