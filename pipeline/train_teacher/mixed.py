"""Train `bundled_v2` on rendered scenes and photographs from ImageNet weights, with SAM's recipe.

The state is checkpointed in the run's folder, from which an interrupted run resumes. At intervals the averaged weights
of the last checkpoint are measured on held-out photographs and scenes.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.config import Config
from pipeline.core.untrusted import tensor_file
from pipeline.data.prompts import first_prompts
from pipeline.models import build
from pipeline.models.sam import Sam, load_state
from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD
from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher.frame import Picture, boxes_of, coverages_of
from pipeline.train_teacher.imagenet import trunk_state
from pipeline.train_teacher.training import Batch, decoder_rounds
from pipeline.train_teacher.validation import Subject, accuracy, held_out_scenes, trivial
from pipeline.train_teacher.windows import cell_px, random_window
from pipeline.training import OptimizerConfig, autocast, fit

MODEL = "bundled_v2"
CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
TRUNK_RATE = 0.2
"""Learning rate of the pre-trained trunk as a share of the others'."""
FROZEN = ("stem", "stages.0", "stages.1")
"""Parts of the trunk that are not trained: generic features on large maps, whose gradients are a third of a step."""
BOX_JITTER = 0.05
MASK_PX = 4
"""Side of a mask's pixel in pixels of the frame."""
HELD_OUT_SCENES, HELD_OUT_SEED = 50, 90210


class MixedConfig(Config):
    """How `bundled_v2` is trained."""

    photographs: str
    """Folder of photographs with masks."""
    annotations: str = "instances.json"
    """COCO-format json in that folder."""
    images: str = "images"
    """Folder of the images in that folder."""
    imagenet: str
    """EfficientNet-Lite0's ImageNet weights, a ``.pth`` file with the keys of efficientnet-lite-pytorch."""
    decoder: str | None = None
    """Weights of a SAM, a safetensors file, whose prompt encoder and mask decoder the training starts from."""
    scene_share: float
    """Share of rendered scenes among the training images."""
    exact_share: float
    """Share of prompts that are tight boxes and central clicks."""
    batch: int
    """Images composed per step of windows of half the frame's side. Steps of other windows have the same area."""
    prompts: int
    """Prompts per window."""
    windows: list[int]
    """Sides of the windows of successive steps, in embedding cells; 32 is the whole frame."""
    correct_every: int
    """Interval, in steps, at which the second round is trained too."""
    measure_every_s: float
    """Seconds of training between two measurements."""
    optimizer: OptimizerConfig


def train_mixed(config: MixedConfig, run: Path, device: str = "cpu") -> Sam:
    """Train `bundled_v2` and return it with averaged weights.

    Args:
        config: The recipe.
        run: Folder of the checkpoint and the log; the run resumes from it.
        device: As torch names it.
    """
    run.mkdir(parents=True, exist_ok=True)
    sam = build(MODEL, seed=config.optimizer.seed)
    sam.image_encoder.get_submodule("trunk").load_state_dict(trunk_state(Path(config.imagenet)))
    if config.decoder is not None:
        start_decoder(sam, Path(config.decoder))
    for name in FROZEN:
        sam.image_encoder.get_submodule(f"trunk.{name}").requires_grad_(False)
    sam.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    train, validation = photos.split(Path(config.photographs), config.annotations, config.images)
    pictures = photos.read(train)
    monitor = Monitor(run, config.measure_every_s, photos.read(validation))

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        return draw_batch(config, pictures, indices, rngs, sam.image_size, cells(number) * cell_px(sam))

    def cells(number: int) -> int:
        return config.windows[number % len(config.windows)]

    def step(batch: Batch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        images, prompts, rngs = batch
        window = random_window(rng, sam, cells(number))
        inputs = images.to(device).contiguous(memory_format=torch.channels_last)
        # Depthwise convolutions are slower in bf16 on a CPU.
        with autocast(torch.device(device), "none" if device == "cpu" else config.optimizer.autocast):
            embeddings = sam.image_encoder(inputs, window.column, window.row).float()
        with autocast(torch.device(device), config.optimizer.autocast):
            correct = number % config.correct_every == 0
            terms = decoder_rounds(sam, embeddings, prompts, rngs, correct=correct, window=window)
        return terms | {"weight": prompts.present.sum()}

    fit(
        sam,
        draw,
        step,
        config.optimizer,
        count=len(pictures),
        batch=config.batch,
        log=monitor,
        name="teacher",
        device=torch.device(device),
        checkpoint=run / CHECKPOINT,
        lr_shares={"image_encoder.trunk": TRUNK_RATE},
    )
    return sam


def start_decoder(sam: Sam, path: Path) -> None:
    """Load the prompt encoder and mask decoder of another SAM, whatever its sizes."""
    weights = tensor_file.safetensors(path, remedy="recreate it")
    for name, module in (("prompt_encoder", sam.prompt_encoder), ("mask_decoder", sam.mask_decoder)):
        prefix = f"{name}."
        module.load_state_dict({key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)})


def draw_batch(
    config: MixedConfig,
    pictures: Sequence[Picture],
    indices: Sequence[int],
    rngs: list[np.random.Generator],
    frame_side: int,
    side: int,
) -> Batch:
    """Compose a step's images, and sample their prompts.

    Args:
        config: The recipe.
        pictures: Photographs to train on.
        indices: Photographs of this step.
        rngs: Random generator of each.
        frame_side: Side of the frame, in pixels.
        side: Side of the windows, in pixels. Small ones are several of each frame, large ones are fewer than `indices`.
    """
    grid, windows = side // MASK_PX, max(1, len(indices) * frame_side**2 // (4 * side**2))
    frames, per_frame = min(windows, len(indices)), max(1, windows // len(indices))
    images, coverages, boxes = [], [], []
    rngs = [rng for rng in rngs[:frames] for _ in range(per_frame)]
    for index, rng in zip(indices[:frames], rngs[::per_frame], strict=True):
        is_scene = rng.random() < config.scene_share
        if is_scene:
            frame = photos.scene(rng, pictures, frame_side)
        else:
            frame = photos.photograph(rng, pictures, index, frame_side)
        for _ in range(per_frame):
            window = frame if side == frame_side else photos.around_an_instance(rng, frame, side)
            images.append(photos.developed(rng, window.image))
            order = rng.permutation(len(window.instances))[: config.prompts]
            instances = [window.instances[i] for i in order]
            coverages.append(coverages_of(instances, side, grid))
            boxes.append(boxes_of(instances))
    pixels = (torch.from_numpy(np.stack(images)).float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    prompts = first_prompts(
        rngs, coverages, boxes, config.prompts, side, box_jitter=BOX_JITTER, exact_share=config.exact_share
    )
    return pixels.permute(0, 3, 1, 2), prompts, rngs


class Monitor:
    """Writes losses, and at intervals the accuracy of the last checkpoint's averaged weights, to the run's log.

    Args:
        run: Folder of checkpoint and log.
        every_s: Seconds between two measurements.
        validation: Photographs that are not trained on.
    """

    def __init__(self, run: Path, every_s: float, validation: Sequence[Picture]) -> None:
        self._run, self._every_s = run, every_s
        self._measured, self._last = 0.0, time.monotonic()
        self._subjects = {
            "photographs": [_subject(picture) for picture in validation],
            "scenes": held_out_scenes(HELD_OUT_SCENES, HELD_OUT_SEED, photos.SCENE_SIDE),
        }
        for name, subjects in self._subjects.items():
            self._write({"data": name, "trivial": _rounded(trivial(subjects))})

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a step's losses; measure if it is time and there is a new checkpoint."""
        self._write({"step": step, **_rounded(metrics)})
        checkpoint = self._run / CHECKPOINT
        if time.monotonic() - self._last < self._every_s or not checkpoint.exists():
            return
        if checkpoint.stat().st_mtime != self._measured:
            self._measured = checkpoint.stat().st_mtime
            self.measure()
            self._last = time.monotonic()

    def measure(self) -> None:
        """Measure the averaged weights of the last checkpoint."""
        sam, done = averaged(self._run / CHECKPOINT)
        for name, subjects in self._subjects.items():
            self._write({"step": done, "data": name} | _rounded(accuracy(sam, subjects)))

    def _write(self, record: Mapping[str, object]) -> None:
        with (self._run / LOG).open("a") as stream:
            stream.write(json.dumps({"time": time.strftime("%H:%M:%S")} | dict(record)) + "\n")


def averaged(checkpoint: Path) -> tuple[Sam, int]:
    """The averaged weights of a checkpoint, and its number of completed steps."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    prefix = "module."
    weights = {key.removeprefix(prefix): v for key, v in state["average"].items() if key.startswith(prefix)}
    sam = build(MODEL)
    load_state(sam, weights, checkpoint)
    sam.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return sam.eval(), int(state["done"])


def _subject(picture: Picture) -> Subject:
    full = []
    for i in picture.instances:
        mask = np.zeros(picture.image.shape[:2], bool)
        mask[i.y : i.y + i.mask.shape[0], i.x : i.x + i.mask.shape[1]] = i.mask.astype(bool)
        full.append(mask)
    return Subject(picture.image, full)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
