"""int8, and fp16 for the rest: what a GPU runs."""

from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.export.form import save
from pipeline.quantize.calibration import Material, agreement, gate
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.fp16 import narrowed
from pipeline.quantize.int8 import int8


def int8_fp16(config: QuantizeConfig, encoder: Path, material: Material) -> dict[str, float]:
    """Replace ``encoder`` by its int8 form, all else of it in fp16. See `pipeline.quantize.int8.int8`."""
    with TemporaryDirectory(dir=encoder.parent, prefix=".int8_fp16-") as directory:
        lowered = Path(directory) / encoder.name
        lowered.write_bytes(encoder.read_bytes())
        figures = int8(config, lowered, material)
        figures |= save(
            narrowed(lowered, material.feeds(material.chosen[0]), Path(directory)),
            lowered,
            reduce_range=config.reduce_range,
        )
        figures |= agreement(encoder, lowered, material)
        gate(config, "int8_fp16", figures)
        lowered.replace(encoder)
        for report in Path(directory).glob("sensitivity*"):
            report.replace(encoder.with_name(report.name))
    return figures
