"""Time of one step of distillation, taken from the stage's own training loop.

`pipeline.distill` trains in a thread that is held before each forward pass, so a call of the candidate is one whole
turn of the loop: forward, loss, backward, optimizer, averaged weights, and the wait for the next batch. Images are
drawn scenes read from shards; the teacher's embeddings are random numbers in a store, since their values cost nothing.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Semaphore, Thread, current_thread
from typing import Any

import torch
from jaxtyping import Float16
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipeline.artifact import write_json
from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import model, scenes, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.data.embeddings import TENSOR, Embeddings, EmbeddingsManifest, StoredShard
from pipeline.data.shards import MANIFEST, Shards
from pipeline.distill import DistillConfig, Task, learn
from pipeline.distill.config import EmbeddingRecipe
from pipeline.embed.store import place
from pipeline.log import silent
from pipeline.models.cost import count_parameters, macs
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam
from pipeline.training import OptimizerConfig, has_bf16

_IMAGES = 6
_ENDLESS = 10**9
"""Steps of a training that is stopped from outside."""
_REST_S = 0.01
"""After a pause this long the next batch has been made while nobody waited."""


def _refuses(runtime: str, precision: str) -> str | None:
    if runtime != "torch":
        return f"{runtime} runs models, it does not train them; take torch"
    if precision == "bf16" and not has_bf16(torch.device("cpu")):
        return "this processor has no instructions for bf16; take fp32"
    return None if precision in ("fp32", "bf16") else f"students are not trained in {precision}; take fp32 or bf16"


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
            embeddings_directory = _embeddings(directory, images, sam.embedding_size)
        training = stack.enter_context(
            Training(sam, images, _Timed(embeddings_directory), _config(settings, precision))
        )
        candidates.append(
            Candidate(
                name=student,
                runtime=runtime,
                precision=precision,
                call=training.step,
                batch=settings.images,
                parameters=count_parameters(sam.image_encoder),
                gmacs=gmacs,
                size_mib=weights_mib(sam.image_encoder),
                figures=training.figures,
            )
        )
    return candidates


def _config(settings: Settings, precision: str) -> DistillConfig:
    optimizer = OptimizerConfig(
        steps=_ENDLESS,
        lr=1e-5,
        schedule="trapezoid",
        warmup_steps=0,
        cooldown_steps=0,
        weight_decay=0.05,
        clip_norm=1.0,
        ema_decay=0.99,
        accumulate=1,
        autocast="bf16" if precision == "bf16" else "none",
        compile=False,
        checkpoint_every=_ENDLESS,
        seed=0,
    )
    recipe = EmbeddingRecipe(kind="embedding", distance="mse")
    return DistillConfig(options={}, recipe=recipe, batch=settings.images, device="cpu", optimizer=optimizer)


def _embeddings(directory: Path, images: Shards, grid: int) -> Path:
    """An artifact of random embeddings for all ``images``."""
    generator = torch.Generator().manual_seed(0)
    where = place(directory / "store", "train", {})
    seal = where.write({TENSOR: torch.randn(len(images), EMBEDDING_CHANNELS, grid, grid, generator=generator).half()})
    shard = StoredShard(file=where.file, bytes=seal.bytes, sha256=seal.sha256, split=images.split, keys=images.keys)
    manifest = EmbeddingsManifest(
        store=str(where.store), teacher="", dtype="float16", embedding_size=grid, taps=[], shards=[shard]
    )
    out = directory / "embeddings"
    out.mkdir()
    write_json(out / MANIFEST, manifest.model_dump())
    return out


class _Timed(Embeddings):
    """Embeddings that know when the last one was handed out: with it, a batch is complete."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.handed_out: dict[int, float] = {}
        """Time at which the n-th embedding was given, from 1 on."""

    def get(self, key: str) -> Float16[Tensor, "256 g g"]:
        """See `Embeddings.get`."""
        embedding = super().get(key)
        self.handed_out[len(self.handed_out) + 1] = time.perf_counter()
        return embedding


class _Stopped(BaseException):
    """Ends a training that is no longer wanted."""


class Training:
    """The stage's training loop, one turn at a time.

    Args:
        sam: Its encoder is trained.
        images: To train on.
        embeddings: The teacher's.
        config: Its ``batch`` is the number of images in a step.
    """

    def __init__(self, sam: Sam, images: Shards, embeddings: _Timed, config: DistillConfig) -> None:
        self._embeddings, self._batch = embeddings, config.batch
        self._arguments = (sam, images, embeddings, config)
        self._hold = sam.image_encoder.register_forward_pre_hook(self._wait)
        self._step_end = register_optimizer_step_post_hook(self._after_update)
        self._go, self._arrived = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._train, daemon=True)
        self._stop, self._error = False, list[BaseException]()
        self._steps, self._updated, self._ended = 0, 0.0, 0.0
        self._waited_s, self._total_s = 0.0, 0.0

    def __enter__(self) -> "Training":
        self._thread.start()
        self._arrive()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._go.release()
        self._thread.join()
        self._hold.remove()
        self._step_end.remove()

    def __deepcopy__(self, memo: Any) -> "Training":
        """Itself: the averaged weights are a copy of the encoder with its hook, which is never called there."""
        return self

    def step(self) -> None:
        """From before one forward pass to before the next."""
        began = time.perf_counter()
        rested = began - self._ended > _REST_S
        self._go.release()
        self._arrive()
        self._ended = time.perf_counter()
        self._steps += 1
        if not rested:
            ready = self._embeddings.handed_out[(self._steps + 1) * self._batch]
            self._waited_s += max(0.0, ready - self._updated)
            self._total_s += self._ended - began

    def figures(self, median_ms: float) -> Mapping[str, float]:
        """``waiting_share``: part of the time in which the next batch was not there yet, if that could be seen."""
        return {"waiting_share": self._waited_s / self._total_s} if self._total_s else {}

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
                    device=torch.device("cpu"),
                    log=silent,
                    checkpoint=None,
                )
            )
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the thread that measures
            self._error.append(error)
            self._arrived.release()

    def _wait(self, module: torch.nn.Module, arguments: Any) -> None:
        if current_thread() is not self._thread:
            return
        self._arrived.release()
        self._go.acquire()
        if self._stop:
            raise _Stopped

    def _after_update(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        if current_thread() is self._thread:
            self._updated = time.perf_counter()


SUBJECT = Subject(
    says="one step of distillation at the student's true size: forward, loss, backward, optimizer",
    unit="one step",
    refuses=_refuses,
    build=_build,
)
