"""EfficientNet-Lite0's convolutional trunk, whose ImageNet weights are published under Apache-2.0.

Source: Tan and Le 2019, "EfficientNet", in the Lite0 variant of TensorFlow's TPU models: no squeeze-and-excitation,
ReLU6. The last stage (320 channels) and the classifier are omitted. Strided convolutions are padded symmetrically,
which samples the same features on a grid shifted by one pixel. Batch norms keep their statistics during training, so
that small batches do not disturb pre-trained features.
"""

from jaxtyping import Float
from torch import Tensor, nn

STEM = 32
STAGES = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2))
"""Expansion, channels, blocks, kernel and stride of each stage."""
LEVELS = (1, 2, 4, 5)
"""Stages whose outputs are returned: the last at strides 4, 8, 16 and 32."""
CHANNELS = tuple(STAGES[level][1] for level in LEVELS)
_NORM_EPS = 1e-3


def _conv(inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPS)


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, depthwise, 1x1 back; a shortcut unless the shape changes."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = nn.Sequential(_conv(inputs, middle), _norm(middle), nn.ReLU6())
        self.depthwise = nn.Sequential(
            _conv(middle, middle, kernel, stride=stride, groups=middle), _norm(middle), nn.ReLU6()
        )
        self.project = nn.Sequential(_conv(middle, outputs), _norm(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Transform a map."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """Normalised pixels ``(B, 3, S, S)`` to maps at strides 4, 8, 16 and 32 with `CHANNELS` channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, STEM, 3, stride=2), _norm(STEM), nn.ReLU6())
        self.stages = nn.ModuleList()
        width = STEM
        for expansion, channels, blocks, kernel, first_stride in STAGES:
            stage = nn.Sequential()
            for number in range(blocks):
                stride = first_stride if number == 0 else 1
                stage.append(InvertedResidual(width, channels, kernel, stride, expansion))
                width = channels
            self.stages.append(stage)

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """Set the mode of all modules except batch norms, which always use their running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "b c h w"]]:
        """Maps from fine to coarse."""
        x = self.stem(images)
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if level in LEVELS:
                maps.append(x)
        return maps
