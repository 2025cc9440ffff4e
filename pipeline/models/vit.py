"""SAM's own models, on segment-anything's image encoder.

Source: segment-anything, ``build_sam.py`` (Kirillov et al. 2023). Published checkpoints load strictly.
"""

from functools import partial

from torch import nn

from pipeline.models.published import ImageEncoderViT
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam, assemble

IMAGE_SIZE = 1024
PATCH_SIZE = 16


def _vit(width: int, depth: int, heads: int, global_attention: tuple[int, ...]) -> Sam:
    encoder = ImageEncoderViT(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        out_chans=EMBEDDING_CHANNELS,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=global_attention,
    )
    return assemble(encoder, image_size=IMAGE_SIZE, input_size=IMAGE_SIZE, embedding_size=IMAGE_SIZE // PATCH_SIZE)


def vit_b() -> Sam:
    """93.7 M parameters; the encoder costs 486 GMAC."""
    return _vit(768, 12, 12, (2, 5, 8, 11))


def vit_l() -> Sam:
    """312.3 M parameters; the encoder costs 1493 GMAC."""
    return _vit(1024, 24, 16, (5, 11, 17, 23))


def vit_h() -> Sam:
    """641.1 M parameters; the encoder costs 2981 GMAC."""
    return _vit(1280, 32, 16, (7, 15, 23, 31))
