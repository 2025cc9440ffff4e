"""OpenVINO's own representation: a graph (``.xml``) beside its weights (``.bin``), which loads faster than ONNX.

Compilation for the CPU at hand happens when it is loaded, so the same files serve every CPU.
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
            raise InputError(f"OpenVINO cannot convert {path} ({reason}): make it anew.") from None
        # Names of inner operations count up over a process; results are told apart by their tensors' names, which stay.
        for i, operation in enumerate(model.get_ordered_ops()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{i}")
        ov.save_model(model, out / f"{name}.xml", compress_to_fp16=False)
        _strip(out / f"{name}.xml")


def _strip(path: Path) -> None:
    """Take out what OpenVINO notes of how and where a file was converted; the graph stays."""
    tree = ElementTree.parse(path)
    root = tree.getroot()
    for child in list(root):
        if child.tag in ("rt_info", "meta_data"):
            root.remove(child)
    tree.write(path, encoding="utf-8", xml_declaration=True)
