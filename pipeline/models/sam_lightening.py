"""SAM-Lightening: a small plain vision transformer with dilated attention as SAM's image encoder.

Source: Song et al. 2024, "SAM-Lightening: A Lightweight Segment Anything Model with Dilated Flash Attention to Achieve
30 times Acceleration" (arXiv 2403.09195), and for the encoder's sizes the author's published code. There are no
published weights to load; the parameter count equals the author's, 14,091,136.

Differences from the author's code, with reasons:

- Attention runs among the tokens of an image (`pipeline.models.attention`). The author's runs along the batch of
  windows: tokens of a window never interact, images of a batch do, and every odd position gets only a bias. That is
  nearly an MLP per token, so **the latency of the published code is not that of the attention that the paper describes,
  and our figures are not comparable with it.**
- Every block has dilated attention; the author's blocks 2 and 5 are meant to be global, but attend to one token.
- The softmax is scaled by the heads' own dimension, 64; the author halves the heads and keeps the scale.
- The positions a head selects depend on its index, so that all heads together cover every position.
- Every other block orders the tokens by columns. With a single order, segments and residue classes of the interval
  never interact: (1024, 2) would split the image into eight parts that only the neck's 3x3 convolution joins.
  Alternating rows and columns, any token reaches any other in two blocks (on square grids; it costs a transposition).
- The author's attention ends in two consecutive linear maps. Here their product is applied as one map.

The nano variant is this project's own: the same code with smaller sizes, for the demo and for tests.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import InputError
from pipeline.models.attention import Pair, mixed_dilated_attention
from pipeline.models.nano import assemble_nano
from pipeline.models.neck import sam_neck
from pipeline.models.sam import Sam, assemble

PATCH = 16
MLP_EXPAND = 4
NORM_EPS = 1e-6

Settings = Any
"""Per block, its pairs (segment, interval); several are mixed, see `mixed_dilated_attention`. Values from params.yaml
are unchecked lists of lists."""


class Projection(nn.Module):
    """Two consecutive linear maps, multiplied first: ``width^3`` products instead of ``tokens * width^2``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """``outer(inner(x))``."""
        return F.linear(x, *self._product())

    def folded(self) -> nn.Linear:
        """Return the equivalent single linear map, for export."""
        weight, bias = self._product()
        linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        return linear

    def _product(self) -> tuple[Tensor, Tensor]:
        return self.outer.weight @ self.inner.weight, self.outer.weight @ self.inner.bias + self.outer.bias


class Attention(nn.Module):
    """Dilated attention over the tokens of an image.

    The pairs decide the function but are not weights. They are saved in the state dict as extra state, so that weights
    do not load into a model with other pairs, although all keys and shapes match.

    Args:
        width: Channels in and out.
        heads: Number of heads, of ``width / heads`` channels each.
        pairs: (segment, interval), in tokens.
    """

    def __init__(self, width: int, heads: int, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.heads, self.pairs = heads, tuple(pairs)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = Projection(width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = mixed_dilated_attention(q, k, v, self.pairs)
        z: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return z

    def get_extra_state(self) -> Tensor:
        """Pairs that the weights were trained with, ``(pairs, 2)``."""
        return torch.tensor(self.pairs, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Check the saved pairs against this module's; nothing is changed.

        Raises:
            InputError: The weights were trained with other pairs.
        """
        saved, expected = state.tolist(), [list(pair) for pair in self.pairs]
        if saved != expected:
            raise InputError(
                f"weights for attention with (segment, interval) {saved} do not fit a block with {expected}: "
                "build the model with the options on their card."
            )


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a shortcut.

    Args:
        width: Channels.
        heads: Attention heads.
        pairs: (segment, interval).
        grid: Side of the square token grid.
        by_columns: Whether attention reads the tokens column by column.
    """

    def __init__(self, width: int, heads: int, pairs: Sequence[Pair], *, grid: int, by_columns: bool) -> None:
        super().__init__()
        self.grid, self.by_columns = grid, by_columns
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, pairs)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_EXPAND * width), nn.GELU(), nn.Linear(MLP_EXPAND * width, width))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Tokens row by row, in and out."""
        x = x + self._ordered(self.attn(self._ordered(self.norm1(x))))
        return x + self.mlp(self.norm2(x))

    def _ordered(self, x: Tensor) -> Tensor:
        """Transpose the token grid if ``by_columns``; on a square grid this is its own inverse."""
        return x.unflatten(1, (self.grid, self.grid)).transpose(1, 2).flatten(1, 2) if self.by_columns else x


class ImageEncoder(nn.Module):
    """``(B, 3, side, side)`` to ``(B, 256, side / 16, side / 16)``.

    Args:
        side: Side of the images, in pixels.
        width: Channels.
        heads: Attention heads.
        attention: Pairs (segment, interval) of each block.
    """

    def __init__(self, *, side: int, width: int, heads: int, attention: Sequence[Sequence[Pair]]) -> None:
        super().__init__()
        self.side, grid = side, side // PATCH
        self.patch_embed = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, pairs, grid=grid, by_columns=i % 2 == 1) for i, pairs in enumerate(attention))
        )
        self.neck = sam_neck(width)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 256 g g"]:
        """Image embeddings of normalised, padded images.

        Raises:
            InputError: The images' size is not ``side``.
        """
        if images.shape[-2:] != (self.side, self.side):
            height, width = images.shape[-2:]
            raise InputError(
                f"this encoder takes {self.side} x {self.side} pixels, not {height} x {width}: "
                f"resize images with pipeline.ops.geometry.to_input(image, {self.side})."
            )
        patches = self.patch_embed(images)
        tokens = self.blocks(patches.flatten(2).transpose(1, 2) + self.pos_embed)
        y: Tensor = self.neck(tokens.transpose(1, 2).unflatten(2, patches.shape[-2:]))
        return y


def _initialise(module: nn.Module) -> None:
    if isinstance(module, Projection):
        # One of the two maps starts as the identity, so that their product starts like a single map.
        nn.init.eye_(module.outer.weight)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _checked(attention: Settings, *, depth: int, heads: int) -> list[list[Pair]]:
    """Validate the pairs of each block.

    Raises:
        InputError: They are not pairs of integers for each block, or an interval does not divide the heads.
    """
    fault = None
    if not isinstance(attention, list | tuple) or len(attention) != depth:
        fault = f"{depth} blocks, not {attention!r}"
    for block in () if fault else attention:
        if not isinstance(block, list | tuple) or not block or not all(_is_pair(pair, heads) for pair in block):
            fault = f"each block, not {block!r}"
    if fault:
        raise InputError(
            f"the option attention must list pairs [segment, interval] for {fault}: integers of at least 1, "
            f"with intervals that divide {heads} heads, for example {[[[1024, 2]]] * depth}."
        )
    return [[(int(segment), int(interval)) for segment, interval in block] for block in attention]


def _is_pair(pair: Any, heads: int) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
        return False
    return heads % int(pair[1]) == 0


def sam_lightening(attention: Settings = (((1024, 2),),) * 6) -> Sam:
    """18.2 M parameters, 14.1 M of them the encoder's, which costs 52.7 GMAC; 1024 pixels in.

    Args:
        attention: Pairs (segment, interval) of each of 6 blocks, over 4096 tokens.
    """
    pairs = _checked(attention, depth=6, heads=6)
    encoder = ImageEncoder(side=1024, width=384, heads=6, attention=pairs)
    return assemble(encoder, image_size=1024, input_size=1024, embedding_size=64)


def sam_lightening_nano(attention: Settings = (((128, 2),),) * 4, teacher: str = "bundled") -> Sam:
    """6.8 M parameters, 2.8 M of them the encoder's, which costs 0.70 GMAC; 256 pixels in and in the prompt frame.

    Args:
        attention: Pairs (segment, interval) of each of 4 blocks, over 256 tokens (1024 with `bundled_v2`).
        teacher: The bundled teacher whose frame and prompt encoder it takes. `bundled_v2` has twice the side.
    """
    pairs = _checked(attention, depth=4, heads=6)
    return assemble_nano(teacher, lambda frame: ImageEncoder(side=frame.side, width=192, heads=6, attention=pairs))
