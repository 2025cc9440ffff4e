"""Names of Hugging Face's ``SamModel`` (``facebook/sam-vit-base``, ``-large``, ``-huge``) as segment-anything's.

Source: the state dicts of transformers 5.24 and of segment-anything, compared entry by entry; only names differ.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_PREFIX = "vision_encoder."
_NAMES = (
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm", r"\1.norm"),
)  # fmt: skip
_HEADS = ("mask_decoder.output_hypernetworks_mlps.", "mask_decoder.iou_prediction_head.")
_TWICE = "prompt_encoder.shared_embedding.positional_embedding"
"""The same matrix as ``shared_image_embedding``'s; older files hold both."""


def uses_these_names(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are `SamModel`'s."""
    return any(key.startswith(_PREFIX) for key in state)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under segment-anything's names. Unknown keys stay, for the strict check to name them."""
    return {_name(key): value for key, value in state.items() if key != _TWICE}


def _name(key: str) -> str:
    for pattern, name in _NAMES:
        key, count = re.subn(pattern, name, key)
        if count:
            return key
    if key.startswith(_HEADS):  # an MLP of three layers, of which Hugging Face numbers only the middle one
        key = key.replace(".layers.0.", ".layers.1.")
        key = key.replace(".proj_in.", ".layers.0.").replace(".proj_out.", ".layers.2.")
    return key
