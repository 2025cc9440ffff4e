"""Results per instance of a registered version: what the gate compares, as one Parquet file.

Columns: ``set`` (prefix of the validation set's metrics), ``image_id``, ``annotation_id``, ``area`` in pixels, and per
prompt ``<prompt>_iou``, for a lower precision also ``<prompt>_iou_fp32`` of the same student in fp32. The file's
metadata holds ``datasets``: digest, protocol and size of each set.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.core.artifact import DATASETS, Card
from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file

FILE = "instances.parquet"
_LARGEST = 1 << 30
"""Bytes of an evaluation's instances."""
_REMEDY = "Repeat the evaluation (`dvc repro`)."
_KEYS = ("set", "image_id", "annotation_id", "area")
FP32 = "_fp32"


class _Instance(BaseModel):
    """An entry of an evaluation's ``instances.json``."""

    model_config = ConfigDict(extra="allow")

    image_id: int
    annotation_id: int
    area: float


@dataclass(frozen=True)
class Instances:
    """IoUs per instance."""

    datasets: Mapping[str, Mapping[str, Any]]
    """Description of each validation set, by prefix."""
    table: Mapping[str, np.ndarray]
    """Columns of equal length; see the module."""

    @property
    def prompts(self) -> list[str]:
        """Prompts with an IoU."""
        return [name.removesuffix("_iou") for name in self.table if name.endswith("_iou")]

    def data(self) -> dict[str, tuple[str, str]]:
        """Digest of the annotations and protocol of each set with instances."""
        about = {prefix: self.datasets.get(prefix, {}) for prefix in dict.fromkeys(self.table["set"].tolist())}
        return {prefix: (str(of.get("digest")), str(of.get("protocol"))) for prefix, of in about.items()}

    def identities(self) -> list[tuple[str, int]]:
        """Set and annotation id of each row."""
        return list(zip(self.table["set"].tolist(), self.table["annotation_id"].tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write the Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: pa.array(column.tolist()) for name, column in self.table.items()})
        metadata = {"datasets": json.dumps(self.datasets, sort_keys=True)}
        pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> "Instances":
        """Read the Parquet file.

        Raises:
            InputError: It is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            datasets = json.loads((table.schema.metadata or {})[b"datasets"])
            columns = {name: np.asarray(table.column(name).to_pylist()) for name in table.column_names}
            missing = {*_KEYS} - columns.keys()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(
                f"{path.name} of the registered version cannot be read: {error}. Register it again."
            ) from None
        if missing:
            raise InputError(
                f"{path.name} of the registered version lacks {', '.join(sorted(missing))}: register again."
            )
        return cls(datasets, columns)


def of_evaluation(directory: Path, fp32: Path | None) -> Instances | None:
    """Results per instance of an evaluation.

    Args:
        directory: Evaluation artifact.
        fp32: That of the same student in fp32 on the same data; None if there is none.

    Returns:
        The results; None if the evaluation holds none.

    Raises:
        InputError: A file is damaged.
    """
    path = directory / DATASETS
    if not path.is_file():
        return None
    datasets = _load(path, dict[str, dict[str, Any]])
    rows, reference = _rows(directory, datasets), {} if fp32 is None else _by_key(_rows(fp32, datasets))
    if not rows:
        return None
    prompts = [key for key in rows[0] if key.endswith("_iou") and not key.endswith("boundary_iou")]
    prompts = [key for key in prompts if not key.endswith("predicted_iou")]
    table = {key: np.array([row[key] for row in rows]) for key in _KEYS}
    table |= {key: np.array([row.get(key, np.nan) for row in rows], float) for key in prompts}
    if reference:
        others = [reference.get((row["set"], row["annotation_id"]), {}) for row in rows]
        table |= {key + FP32: np.array([other.get(key, np.nan) for other in others], float) for key in prompts}
    return Instances(datasets, table)


def _rows(directory: Path, datasets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Instances of all sets; a set's file is in the folder of its name, and detectors' boxes have none."""
    rows = []
    for prefix in datasets:
        path = directory / prefix.removesuffix("_") / "instances.json"
        if path.is_file():
            rows += [{"set": prefix} | row for row in _load(path, list[_Instance])]
    return rows


def _by_key(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["set"], row["annotation_id"]): row for row in rows}


def _load(path: Path, kind: Any) -> Any:
    content = json_file.load(path, _LARGEST, remedy=_REMEDY)
    json_file.validated(content, kind, str(path), remedy=_REMEDY)
    return content


def same_data(evaluation: Card, other: Card) -> bool:
    """Whether two evaluations are of one dataset artifact."""
    return evaluation.parents.get("prepare") == other.parents.get("prepare")
