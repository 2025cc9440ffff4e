"""SAM's neck, which maps a backbone's features to the image embedding.

Source: segment-anything, ``modeling/image_encoder.py``, the neck of ``ImageEncoderViT``. One difference, with equal
results: a channel norm is a single ``layer_norm``, which keeps half-precision engines from squaring features beyond
65504.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.sam import EMBEDDING_CHANNELS

_NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise each position."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def sam_neck(width: int) -> nn.Sequential:
    """SAM's neck: ``(B, width, g, g)`` to ``(B, 256, g, g)``, a 1x1 and a 3x3 convolution, each with a channel norm."""
    return nn.Sequential(
        nn.Conv2d(width, EMBEDDING_CHANNELS, 1, bias=False),
        ChannelNorm(EMBEDDING_CHANNELS, eps=_NORM_EPS),
        nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
        ChannelNorm(EMBEDDING_CHANNELS, eps=_NORM_EPS),
    )
