"""6-bit weights and activations, as TinySAM reports them: a study of accuracy that no engine makes faster."""

from pathlib import Path

from pipeline.quantize.calibration import Material
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.int8 import lower


def w6a6(config: QuantizeConfig, encoder: Path, material: Material) -> dict[str, float]:
    """Replace ``encoder`` by its 6-bit form. See `pipeline.quantize.int8.int8`."""
    return lower(config, "w6a6", encoder, material, weight_bits=6, activation_bits=6)
