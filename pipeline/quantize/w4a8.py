"""4-bit weights and 8-bit activations: a study of accuracy; the file stores the weights in 8 bits all the same."""

from pathlib import Path

from pipeline.quantize.calibration import Material
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.int8 import lower


def w4a8(config: QuantizeConfig, encoder: Path, material: Material) -> dict[str, float]:
    """Replace ``encoder`` by its form with 4-bit weights. See `pipeline.quantize.int8.int8`."""
    return lower(config, "w4a8", encoder, material, weight_bits=4, activation_bits=8)
