"""Convert images and masks of any source to train, calibration and validation shards, with checks.

If the source has masks (COCO), images without masks are skipped and counted, because they can be neither prompted nor
scored. What is evaluated on, a split of the source or named sets of any origin, is written in COCO format (a json and
its images): the first set as ``validation/``, the others as ``validation_sets/<name>/``. Crowd regions and masks of any
size stay in them, for the evaluation's protocol to decide about.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.core.artifact import Contents, write_json, write_metrics
from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.core.progress import progress
from pipeline.data.shards import MANIFEST, Manifest, Packed, write_split
from pipeline.data.workers import in_processes
from pipeline.ops.metrics import BANDS, bands
from pipeline.prepare import procedural
from pipeline.prepare.files import Plan, Validation, plan
from pipeline.prepare.sample import Prepared
from pipeline.prepare.sources import Procedural, Source


class PrepareConfig(Config):
    """The dataset's source and shard size."""

    data: str
    """Folder of the images, or the Python file that renders them; a DVC dependency."""
    shard_images: Annotated[int, Field(ge=1)] = 1000
    source: Source


def prepare(config: PrepareConfig, *, out: Path, log: Log) -> Contents:
    """Write a dataset: shards, manifest, the validation split in COCO's format, and counts.

    Args:
        config: Section ``prepare`` of params.yaml.
        out: Empty directory for the artifact.
        log: Receives the counts.

    Raises:
        InputError: A file is missing or damaged.
    """
    data = Path(config.data)
    if not data.exists():
        raise InputError(f"{data} does not exist: correct prepare.data in params.yaml or put the data there.")
    source = config.source
    division = _rendered(source) if isinstance(source, Procedural) else plan(source, data)
    counts = Counter({f"left_out_{name}": count for name, count in division.left_out.items()})
    parts = [*division.splits.values(), *(part.items for part in division.validation.values())]
    all_items = [item for items in parts for item in items]
    splits, sets = {}, _sets(out, division)
    with closing(in_processes(methodcaller("prepare"), all_items)) as samples:
        bar = progress(samples, "prepare", "image", total=len(all_items))
        remaining = iter(bar)
        for split, items in division.splits.items():
            samples_of = _count(islice(remaining, len(items)), split, counts)
            splits[split] = write_split(out, split, (s.packed for s in samples_of), config.shard_images)
        for name, validation in sets.items():
            packed = validation.collect(_count(islice(remaining, len(validation.items)), name, counts))
            if name == "validation":
                splits[name] = write_split(out, name, packed, config.shard_images)
            else:  # further sets are only evaluated on
                deque(packed, maxlen=0)
            validation.write()
        bar.close()
    write_json(out / MANIFEST, Manifest(splits=splits).model_dump())
    counts["bytes"] = sum(shard.bytes for shards in splits.values() for shard in shards)
    metrics = {name: float(count) for name, count in sorted(counts.items())}
    write_metrics(out, metrics)
    log(metrics)
    return Contents(kind="dataset")


def _rendered(source: Procedural) -> Plan:
    splits = dict(procedural.items(source))
    validation = Validation(splits.pop("validation"))
    return Plan(splits, {"validation": validation})


def _sets(out: Path, division: Plan) -> dict[str, "_ValidationSet"]:
    """Writers of the validation sets by the name of their counts: ``validation`` for the first set."""
    first, *others = division.validation
    sets = {"validation": _ValidationSet(out / "validation", first, division.validation[first])}
    more = {name: _ValidationSet(out / "validation_sets" / name, name, division.validation[name]) for name in others}
    return sets | more


def _count(samples: Iterable[Prepared], split: str, counts: Counter[str]) -> Iterator[Prepared]:
    """Pass samples through and count their images, instances and size bands."""
    counts.update({f"{split}_{band}_instances": 0 for band in BANDS})
    for sample in samples:
        areas = [annotation["area"] for annotation in sample.packed.record["annotations"]]
        counts[f"{split}_images"] += 1
        counts[f"{split}_instances"] += len(areas)
        counts[f"{split}_images_without_objects"] += not areas
        counts["left_out_tiny_masks"] += sample.tiny
        counts["left_out_crowd_regions"] += sample.crowd
        for area in areas:
            counts.update(f"{split}_{band}_instances" for band in bands(area))
        yield sample


class _ValidationSet:
    """Images and annotations in COCO's format, written one by one."""

    def __init__(self, directory: Path, name: str, plan: Validation) -> None:
        self.directory = directory
        self.name = name
        self.items = plan.items
        self.categories = plan.categories
        self.listed = plan.listed
        self.source_digest = plan.source_digest
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        (directory / "images").mkdir(parents=True)

    def collect(self, samples: Iterable[Prepared]) -> Iterator[Packed]:
        """Pass samples through, write each image and record its annotations, with area and box as the source states."""
        for sample in samples:
            image = sample.packed.record["image"]
            (self.directory / "images" / image["file_name"]).write_bytes(sample.packed.jpeg)
            fields = {name: image[name] for name in ("file_name", "height", "width")}
            self.images.append({"id": image["image_id"]} | fields)
            for record, stated in zip(sample.packed.record["annotations"], sample.fields, strict=True):
                annotation = {name: record[name] for name in ("id", "segmentation", "bbox", "area")}
                self.annotations.append(annotation | {"image_id": image["image_id"]} | stated)
            yield sample.packed

    def write(self) -> None:
        """Write ``instances.json``. Keeps the source's annotation ids if they are unique, else numbers them from 1."""
        if len({annotation["id"] for annotation in self.annotations}) != len(self.annotations):
            for number, annotation in enumerate(self.annotations, start=1):
                annotation["id"] = number
        listed = self.listed or len(self.images)
        about = {"name": self.name, "images": listed, "source_digest": self.source_digest}
        write_json(self.directory / "set.json", about)
        content = {
            "info": {"description": "validation split"},
            "licenses": [],
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        write_json(self.directory / "instances.json", content)
