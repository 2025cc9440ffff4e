"""segment-anything's modules, imported without its predictor, which needs torchvision although no model does.

The package's ``__init__`` runs when one of its attributes is first accessed.
"""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

_PACKAGE = "segment_anything"


def _defer_init() -> None:
    """Run ``segment_anything.__init__`` at the first attribute access instead of at import."""
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
    _defer_init()

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
