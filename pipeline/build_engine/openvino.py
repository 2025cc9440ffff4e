"""OpenVINO IR: a graph (``.xml``) and its weights (``.bin``), which load faster than ONNX.

OpenVINO compiles for the CPU at load time, so the same files serve every CPU.
"""

from pathlib import Path
from xml.etree import ElementTree

from pipeline.build_engine.config import BuildEngineConfig
from pipeline.core.errors import InputError
from pipeline.runtime.exported import missing_package


def openvino(config: BuildEngineConfig, source: Path, out: Path) -> None:
    """Convert both files; weights keep their precision.

    Raises:
        InputError: The package is missing, or a file cannot be converted.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise missing_package("openvino", error) from None
    core = ov.Core()
    for name in ("encoder", "decoder"):
        path = source / f"{name}.onnx"
        try:
            model = core.read_model(path)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"OpenVINO cannot convert {path} ({reason}): run `dvc repro`.") from None
        # Default operation names depend on a counter of the process. Outputs are identified by tensor names.
        for i, operation in enumerate(model.get_ordered_ops()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{i}")
        ov.save_model(model, out / f"{name}.xml", compress_to_fp16=False)
        _strip(out / f"{name}.xml")


def _strip(path: Path) -> None:
    """Remove OpenVINO's metadata about the conversion, which differs between machines."""
    tree = ElementTree.parse(path)
    root = tree.getroot()
    for child in list(root):
        if child.tag in ("rt_info", "meta_data"):
            root.remove(child)
    tree.write(path, encoding="utf-8", xml_declaration=True)
