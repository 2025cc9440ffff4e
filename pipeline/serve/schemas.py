"""Requests and answers, as OpenAPI describes them. Names are segment-anything's."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.core.untrusted.json_file import FARTHEST

MOST_POINTS = 256
"""Points of a prompt."""
EXAMPLE_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

Coordinate = Annotated[float, Field(strict=True, ge=-FARTHEST, le=FARTHEST, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Label = Annotated[int, Field(strict=True, ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
Base64 = Annotated[str, Field(strict=True, min_length=1, json_schema_extra={"contentEncoding": "base64"})]
ImageId = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$", examples=[EXAMPLE_ID])]
Format = Literal["rle", "png", "polygons"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _OfImage(_Request):
    """An image by its id or content."""

    image_id: ImageId | None = None
    """Id of an image that was sent before; excludes `image`."""
    image: Base64 | None = None
    """An image file in base64: JPEG, PNG, BMP, WebP, TIFF or GIF; excludes `image_id`."""

    @model_validator(mode="after")
    def _one_image(self) -> "_OfImage":
        if (self.image_id is None) == (self.image is None):
            raise ValueError("give either image_id or image")
        return self


class EmbedRequest(_Request):
    """An image to encode."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": "iVBORw0KGgo..."}]})

    image: Base64
    """An image file in base64: JPEG, PNG, BMP, WebP, TIFF or GIF."""


class Prompt(_Request):
    """Points, a box and an earlier mask for one object. Coordinates are pixels of the upright image."""

    point_coords: Annotated[list[tuple[Coordinate, Coordinate]], Field(max_length=MOST_POINTS)] = []
    """Points [x, y]."""
    point_labels: Annotated[list[Label], Field(max_length=MOST_POINTS)] = []
    """For each point, 1 if it belongs to the object and 0 if not."""
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    """Box [x0, y0, x1, y1] around the object."""
    mask_input: Base64 | None = None
    """`low_res_mask` of an earlier answer: base64 of little-endian float16 logits."""

    @model_validator(mode="after")
    def _complete(self) -> "Prompt":
        if len(self.point_coords) != len(self.point_labels):
            raise ValueError(
                f"point_coords has {len(self.point_coords)} points and point_labels {len(self.point_labels)} labels"
            )
        if not self.point_coords and self.box is None and self.mask_input is None:
            raise ValueError("give point_coords with point_labels, a box, or mask_input")
        if self.box and (self.box[2] < self.box[0] or self.box[3] < self.box[1]):
            raise ValueError("the box ends before it begins: give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
        return self


class PredictRequest(_OfImage):
    """Prompts on one image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image_id": EXAMPLE_ID, "prompts": [{"point_coords": [[320, 200]], "point_labels": [1]}]},
                {"image_id": EXAMPLE_ID, "prompts": [{"box": [10, 20, 200, 180]}], "format": "polygons"},
            ]
        }
    )

    prompts: Annotated[list[Prompt], Field(min_length=1)]
    """One per object; all are answered at once."""
    masks: Literal["best", "single", "all"] = "best"
    """Of each prompt: the multimask output with the highest predicted IoU, the single mask, or all three multimask
    outputs."""
    format: Format = "rle"
    """COCO's RLE, a PNG in base64, or polygons [x, y, x, y, ...]; polygons lose holes."""
    low_res_masks: Flag = False
    """Whether to add `low_res_mask` to each mask, for `mask_input` of a later prompt."""


class EverythingRequest(_OfImage):
    """Settings of everything mode, with segment-anything's names."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image_id": EXAMPLE_ID, "points_per_side": 16}]})

    mode: Literal["hierarchical", "dense"] = "hierarchical"
    """`dense` prompts with every point of the grid; `hierarchical` skips points that a mask covers confidently."""
    points_per_side: Annotated[int, Field(strict=True, ge=1, le=64)] = 32
    """Points of the grid along one side."""
    pred_iou_thresh: Share = 0.88
    """Least predicted IoU of a mask."""
    stability_score_thresh: Share = 0.95
    """Least stability of a mask."""
    box_nms_thresh: Share = 0.7
    """Box IoU above which of two masks the worse is dropped."""
    min_mask_region_area: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    """Holes and islands of fewer pixels are removed."""
    format: Format = "rle"
    """As of `/v1/predict`."""


class Served(BaseModel):
    """The model that answered."""

    name: str
    precision: str
    version: str
    """Version in the registry; empty for an artifact of a directory."""
    digest: str


class Rle(BaseModel):
    """COCO's compressed run-length encoding."""

    size: tuple[int, int]
    counts: str


class Mask(BaseModel):
    """One mask in pixels of the image."""

    segmentation: Rle | str | list[list[float]]
    """In the format that was asked for."""
    bbox: tuple[float, float, float, float]
    """Box [x, y, width, height] of the mask's pixels."""
    area: int
    predicted_iou: float
    low_res_mask: str | None = None
    stability_score: float | None = None
    """Of everything mode."""
    point_coords: list[list[float]] | None = None
    """The prompt, of everything mode."""


class EmbedResponse(BaseModel):
    """An image that was encoded."""

    image_id: str
    size: tuple[int, int]
    """Height and width of the upright image."""
    stored: bool
    """Whether the embedding is in memory, so that `image_id` can be used; false if it exceeds the server's memory."""
    model: Served


class PredictResponse(BaseModel):
    """Masks, for each prompt in the order of the request."""

    image_id: str
    size: tuple[int, int]
    masks: list[list[Mask]]
    model: Served


class EverythingLine(BaseModel):
    """A line of the answer's stream: `image` first, then `progress` and `mask`, at last `end` or `error`."""

    type: Literal["image", "progress", "mask", "end", "error"]
    image_id: str | None = None
    size: tuple[int, int] | None = None
    prompts: int | None = None
    """Prompts done so far."""
    mask: Mask | None = None
    masks: int | None = None
    """Number of masks, of `end`."""
    detail: str | None = None


class Error(BaseModel):
    """Why a request was not answered."""

    detail: str


Json = dict[str, Any]
