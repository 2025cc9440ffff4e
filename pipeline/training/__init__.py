"""The training loop; recipes are functions that return losses."""

from pipeline.core.loading import Draw, NumWorkers, Request, load, loading_of
from pipeline.ops.precision import has_bf16, precision_of
from pipeline.training.checkpoint import CHECKPOINTS, checkpoint_of
from pipeline.training.config import OptimizerConfig, rate
from pipeline.training.device import autocast
from pipeline.training.loop import LOG_EVERY, Step, fit
from pipeline.training.samples import cut, epoch_indices

__all__ = [
    "CHECKPOINTS",
    "LOG_EVERY",
    "Draw",
    "NumWorkers",
    "OptimizerConfig",
    "Request",
    "Step",
    "autocast",
    "checkpoint_of",
    "cut",
    "epoch_indices",
    "fit",
    "has_bf16",
    "load",
    "loading_of",
    "precision_of",
    "rate",
]
