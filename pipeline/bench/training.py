"""Time of distillation steps in the stage's training loop, and in a bare loop in the same run.

`pipeline.distill` trains in a thread that is paused before each forward pass, so a call of the candidate is one full
iteration: forward, loss, backward, optimizer, averaged weights, and the wait for the next batch. Images are rendered
scenes read from shards; the teacher's embeddings are random numbers in a store, since times do not depend on values.

After all rows are timed, each loop runs without pauses for some steps, which gives the memory per step and the share of
time spent waiting for data, as the loop reports it.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Semaphore, Thread, current_thread
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.bench import cuda
from pipeline.bench.bare import Bare
from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import model, scenes, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.core.artifact import write_json
from pipeline.data.embeddings import Embeddings, EmbeddingsManifest, StoredShard
from pipeline.data.encoding import TENSOR
from pipeline.data.shards import MANIFEST, Shards
from pipeline.data.store import locate
from pipeline.distill import DistillConfig, Task, learn
from pipeline.distill.config import EmbeddingRecipe
from pipeline.models.cost import count_parameters, macs
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam
from pipeline.training import OptimizerConfig, has_bf16

_IMAGES = 6
_ENDLESS = 10**9
"""Steps of a training that is stopped by the benchmark."""
_RUNTIMES = ("torch", "cuda", "cuda_compile")


def _refuses(runtime: str, precision: str) -> str | None:
    if runtime not in _RUNTIMES:
        return f"{runtime} runs models, it does not train them; take torch, or cuda on a GPU"
    if runtime != "torch":
        return cuda.refuses(precision)
    if precision == "bf16" and not has_bf16(torch.device("cpu")):
        return "this processor has no instructions for bf16; take fp32"
    return None if precision in ("fp32", "bf16") else f"on processors nothing is trained in {precision}; take fp32"


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    candidates = list[Candidate]()
    images: Shards | None = None
    for runtime, precision in combinations:
        sam = model(settings, student)
        gmacs = macs(sam)["encoder"] / 1e9
        if images is None:
            images = scenes(directory / "images", "train", _IMAGES, sam.image_size)
            embeddings_directory = random_embeddings(directory, images, sam.embedding_size)
        device = torch.device("cpu" if runtime == "torch" else "cuda")
        config = _config(settings, precision, compiled=runtime == "cuda_compile")
        bare = Bare(sam, settings.images, config.training, device)
        training = stack.enter_context(
            Training(sam, images, Embeddings(embeddings_directory), config, device, settings.steps)
        )
        for name, call, figures in (
            (f"{student} bare", bare.step, partial(_rate, settings.images)),
            (student, training.step, training.figures),
        ):
            candidates.append(
                Candidate(
                    name=name,
                    runtime=runtime,
                    precision=precision,
                    call=call,
                    batch=settings.images,
                    parameters=count_parameters(sam.image_encoder),
                    gmacs=gmacs,
                    size_mib=weights_mib(sam.image_encoder),
                    group=f"{student} {runtime} {precision}",
                    figures=figures,
                )
            )
    return candidates


def _rate(batch: int, median_ms: float) -> dict[str, float]:
    return {"images_per_s": 1e3 * batch / median_ms}


def _config(settings: Settings, precision: str, *, compiled: bool) -> DistillConfig:
    loop = OptimizerConfig.model_validate(
        {
            "steps": _ENDLESS,
            "lr": 1e-5,
            "warmup_steps": 0,
            "autocast": "none" if precision == "fp32" else precision,
            "compile": compiled,
            "checkpoint_every": _ENDLESS,
        }
    )
    return DistillConfig(recipe=EmbeddingRecipe(kind="embedding"), batch=settings.images, optimizer=loop)


def random_embeddings(directory: Path, images: Shards, grid: int) -> Path:
    """Write an artifact of random embeddings for all ``images``."""
    generator = torch.Generator().manual_seed(0)
    target = locate(directory / "store", "train", {})
    embeddings = torch.randn(len(images), EMBEDDING_CHANNELS, grid, grid, generator=generator).half()
    seal = target.write(len(images), [{TENSOR: embeddings}])
    shard = StoredShard(file=target.file, bytes=seal.bytes, sha256=seal.sha256, split=images.split, keys=images.keys)
    manifest = EmbeddingsManifest(
        store=str(target.store), teacher="", dtype="float16", embedding_size=grid, feature_layers=[], shards=[shard]
    )
    out = directory / "embeddings"
    out.mkdir()
    write_json(out / MANIFEST, manifest.model_dump())
    return out


class _Stopped(BaseException):
    """Stops a training."""


class Training:
    """The stage's training loop, run one iteration at a time, or several without a pause.

    Args:
        sam: Its encoder is trained.
        images: Training images.
        embeddings: The teacher's embeddings.
        config: Its ``batch`` is the number of images per step.
        device: Device of the training.
        steps: Iterations without a pause.
    """

    def __init__(
        self, sam: Sam, images: Shards, embeddings: Embeddings, config: DistillConfig, device: torch.device, steps: int
    ) -> None:
        self._arguments = (sam, images, embeddings, config)
        self._batch, self._device, self._at_one_go = config.batch, device, steps
        self._hold = sam.image_encoder.register_forward_pre_hook(self._wait)
        self._go, self._arrived = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._train, daemon=True)
        self._stop, self._error, self._free = False, list[BaseException](), 0
        self._memory_mib, self._waiting = list[float](), list[float]()

    def __enter__(self) -> "Training":
        self._thread.start()
        self._arrive()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._go.release()
        self._thread.join()
        self._hold.remove()

    def __deepcopy__(self, memo: Any) -> "Training":
        """Return itself, because the averaged weights are a copy of the encoder with its hook, which never runs."""
        return self

    def step(self) -> None:
        """Run from one forward pass to the next."""
        self._go.release()
        self._arrive()

    def figures(self, median_ms: float) -> Mapping[str, float]:
        """Run many steps without a pause, and compute figures.

        ``waiting_share`` is the share of time spent waiting for a batch. ``memory_first_mib`` and ``memory_last_mib``
        are the memory of the process (on a GPU, of its tensors), medians of the first and last fifth of the steps;
        ``memory_slope_mib`` is its growth per 100 steps, by least squares over all but the first fifth.
        """
        self._memory_mib.clear()
        self._waiting.clear()
        self._free = self._at_one_go
        self.step()
        fifth = max(1, len(self._memory_mib) // 5)
        first, last = (statistics.median(part) for part in (self._memory_mib[:fifth], self._memory_mib[-fifth:]))
        settled = self._memory_mib[fifth:]
        slope = np.polyfit(np.arange(len(settled)), settled, 1)[0] if len(settled) > 1 else 0.0
        memory = {"memory_first_mib": first, "memory_last_mib": last, "memory_slope_mib": 100 * float(slope)}
        waited = self._waiting[1:]  # the first report is also of the time in which it was held
        return _rate(self._batch, median_ms) | ({"waiting_share": statistics.mean(waited)} if waited else {}) | memory

    def _arrive(self) -> None:
        self._arrived.acquire()
        if self._error:
            raise self._error[0]

    def _train(self) -> None:
        try:
            sam, images, embeddings, config = self._arguments
            learn(
                Task(
                    sam=sam,
                    teacher=Path(),
                    images=images,
                    embeddings=embeddings,
                    config=config,
                    device=self._device,
                    log=self._note,
                    checkpoint=None,
                )
            )
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the thread that measures
            self._error.append(error)
            self._arrived.release()

    def _note(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._waiting.append(metrics["distill/waiting_share"])

    def _wait(self, module: torch.nn.Module, arguments: Any) -> None:
        if current_thread() is not self._thread:
            return
        if self._device.type == "cuda" and not self._free:
            torch.cuda.synchronize()
        if self._free:
            self._free -= 1
            self._memory_mib.append(_memory_mib(self._device))
            return
        self._arrived.release()
        self._go.acquire()
        if self._stop:
            raise _Stopped


def _memory_mib(device: torch.device) -> float:
    taken = torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return float(taken / 2**20)


SUBJECT = Subject(
    says="one step of distillation at the student's true size, and the same step with nothing around it",
    unit="one step",
    refuses=_refuses,
    build=_build,
    paired=True,
)
