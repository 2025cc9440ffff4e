"""The command ``plan``: time and disk of each stage before anything runs.

Disk follows from the formats of the files. Time follows from a preset's parameters and a table of rates
(``rates.yaml``), of which each says whether it was measured, published by others, or is an estimate.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.checkout import store_path
from pipeline.core.config import PARAMS, read_params
from pipeline.core.errors import InputError
from pipeline.core.presets import folder
from pipeline.plan import fit as fitting
from pipeline.plan.disk import bytes_of, existing
from pipeline.plan.rates import Used, table
from pipeline.plan.report import as_text, size
from pipeline.plan.time import Clock, Machine
from pipeline.plan.workload import Scale, Workload, read

__all__ = ["Plan", "estimate", "plan"]

CORES_PER_GPU = 12
"""Processor cores that rented GPUs usually come with."""


@dataclass(frozen=True)
class Plan:
    """Time and disk of a preset."""

    preset: str
    scales: Sequence[Scale]
    machines: Sequence[Machine]
    bytes: Mapping[str, Mapping[str, int]]
    """By scale and stage."""
    seconds: Mapping[str, Sequence[Mapping[str, float | None]]]
    """By scale, machine and stage; None for a stage that cannot run at this scale."""
    refusals: Sequence[str]
    """Why not."""
    rates: Sequence[str]
    """Names of the rates used."""
    missing: Mapping[str, Sequence[str]]
    """By scale: what this machine's disks lack, in words; empty if all fits."""


def plan(
    *, preset: str | None, gpus: Sequence[int], cores: int | None, images: int | None, fit: bool, as_json: bool
) -> str:
    """Estimate time and disk of each stage.

    Args:
        preset: Name of a preset; None for params.yaml.
        gpus: Numbers of GPUs, each of which is a column.
        cores: Processor cores; None for `CORES_PER_GPU` per GPU, or this machine's without a GPU.
        images: Number of images; None for one tar, 1 % and 100 % of SA-1B, or the source's own number.
        fit: List all presets instead, and what each lacks on this machine.
        as_json: Return JSON instead of a table.

    Raises:
        InputError: There is no such preset, or it is not valid.
    """
    if fit:
        return fitting.text(fitting.fits(), as_json=as_json)
    result = estimate(preset, gpus=gpus, cores=cores, images=images)
    return json.dumps(_plain(result), indent=1) if as_json else as_text(result, table())


def estimate(preset: str | None, *, gpus: Sequence[int], cores: int | None, images: int | None) -> Plan:
    """As `plan`, as numbers."""
    file = PARAMS if preset is None else folder() / f"{preset}.yaml"
    if preset is not None and not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder().glob("*.yaml")))
        raise InputError(f"{file} does not exist; there is {known or 'none'}.")
    if not gpus or any(count < 0 for count in gpus):
        raise InputError("--gpus must list numbers of GPUs, for example 1,8.")
    work = read(read_params(file), file)
    scales = work.scales(images)
    counts = gpus if work.uses_gpu else (0,)
    machines = [Machine(count, cores or (CORES_PER_GPU * count or os.cpu_count() or 1)) for count in counts]
    used = Used()
    clocks = [Clock(work, machine, used) for machine in machines]
    sizes = {scale.name: bytes_of(work, scale) for scale in scales}
    seconds = {scale.name: [clock.seconds(scale) for clock in clocks] for scale in scales}
    return Plan(
        preset=preset or str(PARAMS),
        scales=scales,
        machines=machines,
        bytes=sizes,
        seconds=seconds,
        refusals=list(dict.fromkeys(refusal for clock in clocks for refusal in clock.refusals)),
        rates=used.names,
        missing={scale.name: _missing(work, sizes[scale.name]) for scale in scales},
    )


def _missing(work: Workload, sizes: Mapping[str, int]) -> list[str]:
    """Disks of this machine that are too small, what is already in the data folder set off."""
    data, store = Path(work.prepare.data), store_path(work.embed.store if work.embed else ".")
    present = sum(path.stat().st_size for path in data.glob("*.tar")) if data.is_dir() else 0
    needs = [
        (data, max(0, sizes["data"] - present)),
        (store, sizes["embed"]),
        (Path(), sum(sizes.values()) - sizes["data"] - sizes["embed"]),
    ]
    disks = dict[int, tuple[Path, int]]()
    for path, need in needs:
        directory = existing(path)
        device = directory.stat().st_dev
        first, before = disks.get(device, (path, 0))
        disks[device] = (first, before + need)
    short = []
    for path, need in disks.values():
        free = shutil.disk_usage(existing(path)).free
        if need > free:
            short.append(
                f"the disk of {path} needs {size(need)}, has {size(free)} free: {size(need - free)} are missing"
            )
    return short


def _plain(result: Plan) -> dict[str, Any]:
    rates = {name: table().rates[name].model_dump() for name in result.rates}
    return asdict(result) | {"rates": rates}
