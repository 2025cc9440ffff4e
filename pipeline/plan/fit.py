"""Which presets this machine can run: GPU, data, disk and memory."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from pipeline.core.checkout import store_path
from pipeline.core.config import read_params
from pipeline.core.errors import InputError
from pipeline.core.presets import folder
from pipeline.plan.disk import bytes_of, existing
from pipeline.plan.report import size
from pipeline.plan.workload import Workload, read

_FULL_SIZE_BYTES = 16 << 30
"""Memory with a full-size teacher, about: ViT-H's weights twice, activations of a batch, loader processes."""

_GPU_BYTES = 16_000_000_000
"""GPU memory, about: an estimate of ViT-H in batches of 8, and of a training at the presets' micro-batches."""


@dataclass(frozen=True)
class Fit:
    """A preset, and what it lacks here."""

    preset: str
    lacks: Sequence[str]
    disk_bytes: int | None
    """At its smallest scale; None if the number of its images is not known."""


def fits() -> list[Fit]:
    """All presets."""
    return [_fit(path) for path in sorted(folder().glob("*.yaml"))]


def text(results: Sequence[Fit], *, as_json: bool) -> str:
    """One line for each preset."""
    if as_json:
        return json.dumps([asdict(result) for result in results], indent=1)
    width = max(len(result.preset) for result in results)
    return "\n".join(f"{r.preset:<{width}}  {'; '.join(r.lacks) or 'fits'}" for r in results)


def _fit(path: Path) -> Fit:
    try:
        work = read(read_params(path), path)
    except InputError as error:
        return Fit(path.stem, [str(error)], None)
    lacks = []
    if work.uses_gpu:
        lacks += _gpu()
    if not Path(work.prepare.data).exists():
        lacks.append(f"{work.prepare.data} does not exist")
    if work.teacher.checkpoint and "://" not in work.teacher.checkpoint and not Path(work.teacher.checkpoint).exists():
        lacks.append(f"{work.teacher.checkpoint} does not exist")
    needed = _disk(work, lacks)
    if work.teacher.name.startswith("vit_") and (total := psutil.virtual_memory().total) < _FULL_SIZE_BYTES:
        lacks.append(f"needs about {size(_FULL_SIZE_BYTES)} of memory, there is {size(total)}")
    return Fit(path.stem, lacks, needed)


def _gpu() -> list[str]:
    """What the first GPU lacks."""
    if not torch.cuda.is_available():
        return ["no GPU"]
    total = torch.cuda.get_device_properties(0).total_memory
    if total < _GPU_BYTES:
        return [f"needs about {size(_GPU_BYTES)} of GPU memory, there is {size(total)}"]
    return []


def _disk(work: Workload, lacks: list[str]) -> int | None:
    """Bytes beside the data, at the smallest scale."""
    try:
        scale = work.scales(None)[0]
    except InputError:
        return None
    sizes = bytes_of(work, scale)
    needed = sum(sizes.values()) - sizes["data"]
    free = min(
        shutil.disk_usage(existing(p)).free for p in (Path(), store_path(work.embed.store if work.embed else "."))
    )
    if needed > free:
        lacks.append(f"needs {size(needed)} of disk for {scale.name}, {size(free)} are free")
    return needed
