"""segment-anything's own modules, without its predictor: torchvision comes with that, and no model needs it.

All that the package's ``__init__`` offers is there for whoever asks the package for it, and is imported then.
"""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

_PACKAGE = "segment_anything"


def _put_off_init() -> None:
    """Have ``segment_anything`` run its ``__init__`` when a name of it is first asked for, not when it is imported."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    package, loader = module_from_spec(spec), spec.loader

    def getattr_(name: str) -> Any:
        package.__dict__.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = getattr_
    sys.modules[_PACKAGE] = package


if _PACKAGE not in sys.modules:
    _put_off_init()

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer  # noqa: E402
from segment_anything.modeling.common import LayerNorm2d  # noqa: E402
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock  # noqa: E402

__all__ = [
    "Attention",
    "ImageEncoderViT",
    "LayerNorm2d",
    "MaskDecoder",
    "PromptEncoder",
    "TwoWayAttentionBlock",
    "TwoWayTransformer",
]
