"""Runtimes: one `Segmenter` interface over PyTorch, ONNX Runtime and OpenVINO, and SAM's predictor on top of it."""

from pipeline.runtime.everything import EverythingSettings, everything
from pipeline.runtime.loading import ENGINES, load
from pipeline.runtime.predictor import Predictor
from pipeline.runtime.segmenter import Segmenter

__all__ = ["ENGINES", "EverythingSettings", "Predictor", "Segmenter", "everything", "load"]
