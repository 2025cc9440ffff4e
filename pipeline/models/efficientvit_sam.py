"""EfficientViT-SAM: EfficientViT's backbone and a neck as SAM's image encoder.

Source: Zhang et al. 2024, "EfficientViT-SAM: Accelerated Segment Anything Model Without Performance Loss"
(arXiv 2402.05008). Published checkpoints load strictly and give the published outputs. Differences from the published
code that do not change results: the neck skips resizes to the same size, and the final channel norm is a single
``layer_norm``, which keeps half-precision engines from squaring features beyond 65504.
The nano variant is this project's own: the same code with smaller sizes, for the demo and for tests.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.efficientvit import NORM_EPS, Backbone, Block, Stage, conv, fused_mb_conv, op_list
from pipeline.models.nano import Frame, assemble_nano
from pipeline.models.neck import ChannelNorm
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam, assemble


class Neck(nn.Module):
    """Fuse the coarsest stages into one map: 1x1 convolutions, resize to a common size, sum, then blocks.

    Args:
        channels: Channels of the stages read, from coarse to fine.
        depth: Blocks after the sum.
        expand: Expansion within these blocks.
        side: Height and width of the result.
    """

    def __init__(self, channels: Sequence[int], *, depth: int, expand: int, side: int) -> None:
        super().__init__()
        width = EMBEDDING_CHANNELS
        self.side = side
        self.input_ops = nn.ModuleList(op_list(conv(c, width, act=False)) for c in channels)
        self.middle = op_list(*(Block(fused_mb_conv(width, width, expand)) for _ in range(depth)))
        self.output_ops = nn.ModuleList([op_list(conv(width, width, norm=False, act=False, bias=True))])

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b 256 side side"]:
        """Features from coarse to fine, one per input."""
        maps = [self._resize(op(x)) for op, x in zip(self.input_ops, features, strict=True)]
        y: Tensor = self.output_ops[0](self.middle(sum(maps[1:], start=maps[0])))
        return y

    def _resize(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (self.side, self.side):  # bicubic resampling onto the same grid changes nothing
            return x
        size = (self.side, self.side)
        return F.interpolate(x.float(), size, mode="bicubic", align_corners=False).to(x.dtype)


class ImageEncoder(nn.Module):
    """Backbone, neck over its coarsest stages, channel norm.

    Args:
        stages: The backbone's, from fine to coarse.
        kernel: Side of the neighbourhood that linear attention aggregates over.
        levels: How many of the coarsest stages the neck reads.
        neck_depth: Blocks in the neck.
        neck_expand: Expansion within these blocks.
        embedding_size: Side of the image embedding.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        kernel: int,
        levels: int,
        neck_depth: int,
        neck_expand: int,
        embedding_size: int,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.backbone = Backbone(stages, kernel)
        self.neck = Neck(
            [stage.width for stage in stages[: -levels - 1 : -1]],
            depth=neck_depth,
            expand=neck_expand,
            side=embedding_size,
        )
        self.norm = ChannelNorm(EMBEDDING_CHANNELS, eps=NORM_EPS)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """Image embeddings of normalised, padded images in the input frame."""
        features = self.backbone(images)
        y: Tensor = self.norm(self.neck(features[: -self.levels - 1 : -1]))
        return y

    def feature_layers(self) -> list[nn.Module]:
        """The backbone's blocks without the stem, see `pipeline.models.feature_layers`."""
        stages = self.backbone.stages
        return [block for stage in stages for block in stage.get_submodule("op_list").children()][1:]


def _initialise(module: nn.Module) -> None:
    """Kaiming normal weights, so that blocks without inner norms preserve the scale of their input from the start."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _assemble(encoder: ImageEncoder, *, image_size: int, input_size: int) -> Sam:
    grid = encoder.neck.side
    return _with_norm_eps(assemble(encoder, image_size=image_size, input_size=input_size, embedding_size=grid))


def _with_norm_eps(sam: Sam) -> Sam:
    """Give all norms, the mask decoder's included, the epsilon the family was trained with."""
    for module in sam.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.eps = NORM_EPS
    return sam


def _large(depths: tuple[int, int, int, int, int], neck_depth: int) -> Sam:
    """The L family: 512 pixels in; prompts stay in SAM's frame of 1024."""
    stages = (
        Stage("res", 32, depths[0]),
        Stage("fmb", 64, depths[1], expand=4, down=16),
        Stage("fmb", 128, depths[2], expand=4, down=16),
        Stage("mb", 256, depths[3], expand=4, down=16),
        Stage("att", 512, depths[4], expand=6, down=24),
    )
    encoder = ImageEncoder(stages, kernel=5, levels=3, neck_depth=neck_depth, neck_expand=1, embedding_size=64)
    return _assemble(encoder, image_size=1024, input_size=512)


def _extra_large(depths: tuple[int, int, int, int, int, int], neck_depth: int) -> Sam:
    """The XL family: 1024 pixels in."""
    stages = (
        Stage("res", 32, depths[0]),
        Stage("fmb", 64, depths[1], expand=4, down=16),
        Stage("fmb", 128, depths[2], expand=4, down=16),
        Stage("fmb", 256, depths[3], expand=4, down=16),
        Stage("att", 512, depths[4], expand=4, down=16),
        Stage("att", 1024, depths[5], expand=6, down=24),
    )
    encoder = ImageEncoder(stages, kernel=3, levels=3, neck_depth=neck_depth, neck_expand=4, embedding_size=64)
    return _assemble(encoder, image_size=1024, input_size=1024)


def efficientvit_sam_l0() -> Sam:
    """34.8 M parameters; the encoder costs 34.8 GMAC."""
    return _large((1, 1, 1, 4, 4), neck_depth=4)


def efficientvit_sam_l1() -> Sam:
    """47.7 M parameters; the encoder costs 49.0 GMAC."""
    return _large((1, 1, 1, 6, 6), neck_depth=8)


def efficientvit_sam_l2() -> Sam:
    """61.3 M parameters; the encoder costs 68.6 GMAC."""
    return _large((1, 2, 2, 8, 8), neck_depth=12)


def efficientvit_sam_xl0() -> Sam:
    """117.0 M parameters; the encoder costs 184.8 GMAC."""
    return _extra_large((0, 1, 1, 2, 3, 3), neck_depth=6)


def efficientvit_sam_xl1() -> Sam:
    """203.3 M parameters; the encoder costs 321.9 GMAC."""
    return _extra_large((1, 2, 2, 4, 6, 6), neck_depth=12)


def efficientvit_sam_nano(teacher: str = "bundled") -> Sam:
    """6.8 M parameters, 2.8 M of them the encoder's, which costs 0.59 GMAC; 256 pixels in and in the prompt frame.

    The embedding is 16 x 16, so most capacity is at 1/16 resolution and below. Blocks before that are fused rather than
    depthwise, as in the XL family, because they run faster on a CPU for the same work.

    Args:
        teacher: The bundled teacher whose frame and prompt encoder it takes. `bundled_v2` has twice the side.
    """
    stages = (
        Stage("res", 16, 0),
        Stage("fmb", 32, 0, down=2),
        Stage("fmb", 64, 1, expand=1, down=2),
        Stage("fmb", 128, 2, expand=2, down=4),
        Stage("att", 192, 2, expand=3, down=4),
    )

    def encoder(frame: Frame) -> ImageEncoder:
        return ImageEncoder(stages, kernel=3, levels=2, neck_depth=1, neck_expand=1, embedding_size=frame.grid)

    return _with_norm_eps(assemble_nano(teacher, encoder))
