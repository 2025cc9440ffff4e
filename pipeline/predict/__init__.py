"""The command ``predict``: masks of images for a detector's boxes, for points, or of everything.

Results of finished images are stored in ``OUT/.partial`` as they are ready, so that an interrupted run resumes and
gives the files of an uninterrupted one. They are used again only for the same model, options, image and prompts.
"""

import hashlib
import json
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__
from pipeline.core import code
from pipeline.core.artifact import Card, write_json
from pipeline.core.atomic import replacing
from pipeline.core.errors import InputError
from pipeline.core.progress import notice, progress
from pipeline.data.coco import ImageRecord
from pipeline.data.photograph import read_file, read_pixels
from pipeline.models.students import module_of
from pipeline.predict.finished import Finished, discard, finished
from pipeline.predict.formats import DATA, FORMATS, INSTANCES, LABELS, LINKS, OBJECTS, OVERLAYS, Results, stems
from pipeline.predict.formats import write_overlay as draw
from pipeline.predict.images import Images, images_of
from pipeline.predict.prompts import Prompt, Prompts, read_boxes, read_points
from pipeline.predict.segment import check_prompts, from_everything, from_prompts
from pipeline.runtime import Predictor, load

MARKER = "predict.json"
"""File that identifies a folder of results and says what they were made by."""
_NAMED = 10
"""Skipped images named in the error."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `predict`."""

    boxes: Path | None = None
    points: Path | None = None
    everything: bool = False
    """The default without boxes and points."""
    annotations: Path | None = None
    """COCO json with names of images and categories."""
    format: str = "coco"
    overlays: bool = False
    min_score: float | None = None
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("boxes", "points", "everything") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other: give one of them.")
        if self.annotations and not (self.boxes or self.points):
            raise InputError("--annotations names the images of --boxes or --points: give one of them, too.")
        if self.format not in FORMATS:
            raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {self.format!r}.")
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score must lie in [0, 1], not {self.min_score}.")


def predict(*, model: Path, images: Path, out: Path, options: Options) -> dict[str, Any]:
    """Predict masks and write them to ``out``.

    Args:
        model: Directory of an artifact that `pipeline.runtime.load` takes.
        images: A folder, an image, or a text file that lists images.
        out: Folder of results: new, empty, or of an earlier prediction, whose files are replaced.
        options: Prompts and format.

    Returns:
        The contents of ``predict.json``.

    Raises:
        InputError: An input is invalid; nothing was predicted. Or images were skipped; the others are in ``out``.
    """
    card = Card.read(model)
    _check_out(out)
    chosen, prompts = images_of(images, out), _prompts(options)
    if prompts.by_image is not None:
        _check_names(chosen, prompts.by_image, options.boxes or options.points)
    work = _Work(chosen, prompts, options, out, stems(chosen.names, unique=FORMATS[options.format].unique_stems))
    device = _device(options.device, card)
    made_by = _made_by(card, options, device)
    predictor = Predictor(load(model, device, options.threads))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, made_by)
    identity = hashlib.sha256(json.dumps([made_by, prompts.categories]).encode()).hexdigest()
    with finished(out, identity) as done:
        try:
            skipped = work.run(predictor, done)
        except KeyboardInterrupt:
            notice("Finished images are kept: run the same command again to resume.")
            raise
        return _complete(work, done, made_by, skipped)


def summary(out: Path, result: dict[str, Any]) -> str:
    """One line about the result of `predict`."""
    line = f"{result['masks']} masks in {result['images']} images: {out / FORMATS[result['format']].summary}"
    without = result["prompts_without_mask"]
    return f"{line}; {without} prompts gave no mask" if without else line


@dataclass(frozen=True)
class _Work:
    images: Images
    prompts: Prompts
    options: Options
    out: Path
    stems: dict[str, str]

    def run(self, predictor: Predictor, done: Finished) -> list[str]:
        """Predict all images that are not finished; returns the names of those that cannot be used."""
        skipped = []
        for name in progress(self.images.names, "predict", "image"):
            try:
                self._image(name, predictor, done)
            except InputError as error:
                skipped.append(name)
                notice(f"skipped {name}: {' '.join(str(error).split())}")
        return skipped

    def _image(self, name: str, predictor: Predictor, done: Finished) -> None:
        raw = read_file(self.images.root / name, name)
        record = self.prompts.images.get(name)
        prompts = None if self.prompts.by_image is None else self.prompts.by_image.get(name, [])
        digest = _digest(raw, record, prompts)
        if (name, digest) in done and all(path.is_file() for path in self.files(name)):
            return
        stated = (record.height, record.width) if record else None
        pixels, transposed = read_pixels(raw, name, stated, record.exif_transposed if record else None)
        size = (pixels.shape[0], pixels.shape[1])
        if prompts is None:
            masks = from_everything(predictor, pixels, self.options.min_score)
        else:
            check_prompts(prompts, size)
            masks = from_prompts(predictor, pixels, prompts)
            if self.options.points and self.options.min_score is not None:
                masks = [mask for mask in masks if mask["score"] >= self.options.min_score]
        for path in self.files(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_relative_to(self.out / OVERLAYS):
                draw(path, masks, pixels)
            elif write_labels := FORMATS[self.options.format].write_labels:
                write_labels(path, masks, size, self.prompts.categories)
        result = {"height": size[0], "width": size[1], "exif_transposed": transposed, "masks": masks}
        done.add(name, digest, result | {"prompts_without_mask": len(prompts or masks) - len(masks)})

    def files(self, name: str) -> list[Path]:
        """The files of one image."""
        suffix, files = FORMATS[self.options.format].suffix, []
        if suffix:
            files.append(self.out / LABELS / f"{self.stems[name]}{suffix}")
        if self.options.overlays:
            files.append(self.out / OVERLAYS / f"{self.stems[name]}.jpg")
        return files


def _prompts(options: Options) -> Prompts:
    if options.boxes:
        return read_boxes(options.boxes, options.annotations, options.min_score)
    return read_points(options.points, options.annotations) if options.points else Prompts(None)


def _check_names(images: Images, by_image: dict[str, list[Prompt]], path: Path | None) -> None:
    """Check that prompts belong to images; an image or a list may be a part of those with prompts."""
    known = set(images.names)
    unknown = [name for name in by_image if name not in known]
    if not unknown:
        return
    if images.whole_folder or len(unknown) == len(by_image):
        prompt = by_image[unknown[0]]
        where = f"entry {prompt[0].entry} (counted from 0) " if prompt else ""
        raise InputError(
            f"{path}: {where}belongs to {unknown[0]!r}, which is not among the images of {images.root}: "
            "give names relative to that folder, or list the images to use in a text file."
        )
    notice(f"{path} also has prompts for {len(unknown)} images that are not to be predicted.")


def _device(name: str, card: Card) -> str | None:
    """Resolve ``auto``: a GPU for checkpoints if there is one, else the default of the artifact's runtime."""
    if name != "auto":
        return name
    return "cuda" if card.kind == "checkpoint" and torch.cuda.is_available() else None


def _made_by(card: Card, options: Options, device: str | None) -> dict[str, Any]:
    """What decides all results, besides images and prompts."""
    prompts = "boxes" if options.boxes else "points" if options.points else "everything"
    return {
        "version": __version__,
        "code": code.digest(__name__, module_of(card.model or "")),
        "model": {"name": card.model, "precision": card.precision, "kind": card.kind, "digest": card.digest},
        "prompts": prompts,
        "format": options.format,
        "overlays": options.overlays,
        "min_score": options.min_score,
        "device": device or "default",
        "threads": options.threads,
    }


def _digest(raw: bytes, record: ImageRecord | None, prompts: Sequence[Prompt] | None) -> str:
    """Digest of what decides one image's result."""
    total = hashlib.sha256(raw)
    total.update(json.dumps([record.model_dump() if record else None, prompts]).encode())
    return total.hexdigest()


def _check_out(out: Path) -> None:
    """Check that ``out`` is new, empty, or holds results of an earlier prediction.

    Raises:
        InputError: It is a file, or holds other files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"--out {out} holds other files: give a new or an empty folder.")


def _complete(work: _Work, done: Finished, made_by: dict[str, Any], skipped: list[str]) -> dict[str, Any]:
    """Write the files over all images, and remove those of earlier predictions."""
    left_out, out = set(skipped), work.out
    names = [name for name in work.images.names if name not in left_out]
    results = Results(names, _ids(work), done.__getitem__, work.prompts.categories, work.images.root)
    chosen_format = FORMATS[work.options.format]
    chosen_format.finish(out, results)
    counts = {"masks": 0, "prompts_without_mask": 0}
    for name in names:
        result = results.read(name)
        counts["masks"] += len(result["masks"])
        counts["prompts_without_mask"] += result["prompts_without_mask"]
    summary = made_by | {"images": len(names)} | counts | {"skipped": skipped}
    expected = {out / chosen_format.summary, *(path for name in names for path in work.files(name))}
    if chosen_format.summary == DATA:
        expected |= {out / LINKS / name for name in names}
    _remove_others(out, expected)
    with replacing(out / MARKER) as draft:
        write_json(draft, summary)
    if skipped:
        named = ", ".join(skipped[:_NAMED]) + (f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else "")
        raise InputError(
            f"{len(skipped)} of {len(work.images.names)} images were skipped: {named}. The others are in {out}. "
            "Correct or remove these, and run the command again: it keeps what is finished."
        )
    discard(out)
    return summary


def _ids(work: _Work) -> dict[str, int]:
    """COCO ids of the images: those of the prompt file's json, others after them."""
    ids = {name: record.id for name, record in work.prompts.images.items()}
    following = max(ids.values(), default=0)
    for name in work.images.names:
        if name not in ids:
            following += 1
            ids[name] = following
    return ids


def _remove_others(out: Path, expected: Container[Path]) -> None:
    """Remove files of earlier predictions that are not ``expected``; of the folder of links, links only."""
    for path in (out / name for name in (INSTANCES, OBJECTS, DATA)):
        if path not in expected:
            path.unlink(missing_ok=True)
    for folder in (LABELS, OVERLAYS, LINKS):
        for directory, _, files in os.walk(out / folder, topdown=False):
            for path in (Path(directory) / file for file in files):
                if path not in expected and (folder != LINKS or path.is_symlink()):
                    path.unlink()
            if not os.listdir(directory):
                os.rmdir(directory)
