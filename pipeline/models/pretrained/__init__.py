"""Weights from outside the pipeline: published checkpoints and artifacts, as initial weights, students or teachers.

A source is a ``.pth`` or ``.pt`` file as PyTorch saves it, a safetensors file, a folder with ``model.safetensors``
(Hugging Face's ``facebook/sam-vit-*``, or a checkpoint artifact of this project), or an http(s) URL of a file. Its
SHA-256 is pinned. Files never execute code: pickles are read with ``weights_only``. Accepted keys: a whole SAM with
segment-anything's names, the same with DDP's prefix ``module.``, Hugging Face's names, or an image encoder alone
(EfficientViT-SAM's ``distilled_model/*.pt``), with or without the prefix ``image_encoder.``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from pipeline.core.artifact import CARD, Card
from pipeline.core.checkout import store_path
from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.models.pretrained import hugging_face
from pipeline.models.pretrained.files import fetch, read
from pipeline.models.sam import WEIGHTS, Sam, load_state

STORE = ".store/checkpoints"
"""Download directory outside DVC, relative to ``SAM_DISTILLERY_STORE`` or the checkout."""
PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
_DDP = "module."

Part = Literal["whole", "image_encoder"]


class Source(Config):
    """A file of weights and its hash."""

    checkpoint: str
    """Path or http(s) URL of a ``.pth``, ``.pt`` or ``.safetensors`` file, or path of a folder with
    ``model.safetensors``."""
    sha256: str = Field(pattern="^[0-9a-fA-F]{64}$")
    """Expected SHA-256 of the file, in hex."""


def load_pretrained(sam: Sam, name: str, source: Source, key: str, store: str = STORE) -> Part:
    """Load weights into ``sam`` with strict keys: `read_pretrained`, then `load_parts`."""
    return load_parts(sam, *read_pretrained(name, source, key, store))


def read_pretrained(name: str, source: Source, key: str, store: str = STORE) -> tuple[dict[str, Tensor], Path]:
    """Read a state dict in fp32 with segment-anything's key names, without building its model.

    Args:
        name: Name of the model in the table.
        source: The file and its hash.
        key: The key of params.yaml that names the source, for errors.
        store: Directory of downloads.

    Returns:
        The state dict, and the file it comes from.

    Raises:
        InputError: The file is missing, damaged, not finite, or its hash differs.
    """
    path = fetch(source.checkpoint if "://" in source.checkpoint else _file(Path(source.checkpoint), name),
                 source.sha256, store_path(store), key)  # fmt: skip
    state = read(path)
    if state and all(own.startswith(_DDP) for own in state):
        state = {own.removeprefix(_DDP): value for own, value in state.items()}
    if hugging_face.uses_these_names(state):
        state = hugging_face.renamed(state)
    state = {own: value.float() if value.is_floating_point() else value for own, value in state.items()}
    return state, path


def load_parts(sam: Sam, state: Mapping[str, Tensor], path: Path) -> Part:
    """Load a state dict of `read_pretrained` into ``sam``, in place.

    Returns:
        Whether it holds a whole model or an image encoder, after which the decoder is unchanged.

    Raises:
        InputError: It is another model's.
    """
    if any(key.startswith(PARTS[1:]) for key in state):
        load_state(sam, dict(state), path)
        return "whole"
    own = sam.state_dict()
    bare = any(PARTS[0] + key in own for key in state)
    encoder = {PARTS[0] + key if bare else key: value for key, value in state.items()}
    rest = {key: value for key, value in own.items() if not key.startswith(PARTS[0])}
    load_state(sam, rest | encoder, path)
    return "image_encoder"


def _file(path: Path, name: str) -> str:
    """The file of weights in a folder; a path that is not a folder is returned unchanged.

    Raises:
        InputError: The folder has no weights in one file, or is an artifact of another kind or model.
    """
    if not path.is_dir():
        return str(path)
    if (path / CARD).is_file():
        card = Card.read(path)
        if card.kind != "checkpoint" or card.model != name:
            raise InputError(
                f"{path} is an artifact of kind {card.kind!r} of {card.model or 'no model'}, not a checkpoint of "
                f"{name}: name one of artifacts/distill or artifacts/align, or change the model's name."
            )
    if not (path / WEIGHTS).is_file():
        raise InputError(f"{path} holds no {WEIGHTS}: name the file of the weights, as one file, not in shards.")
    return str(path / WEIGHTS)
