"""Assembly of a SAM from an image encoder and segment-anything's own prompt encoder and mask decoder.

Source: segment-anything, ``modeling/sam.py`` and ``build_sam.py`` (Kirillov et al. 2023). Differences: the encoder's
input size and the prompt frame's size are separate, since EfficientViT-SAM L takes 512 pixels while its prompts stay in
SAM's 1024-pixel frame; decoding is `pipeline.models.decoder.decode`, which can be trained and exported.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core.errors import InputError
from pipeline.core.untrusted import tensor_file
from pipeline.core.untrusted.regular_file import MissingFileError
from pipeline.models.published import MaskDecoder, PromptEncoder, TwoWayTransformer

EMBEDDING_CHANNELS = 256
WEIGHTS = "model.safetensors"


class Sam(nn.Module):
    """An image encoder, a prompt encoder and a mask decoder, with the sizes that tie them together.

    Args:
        image_encoder: ``(B, 3, input_size, input_size)`` normalised pixels to ``(B, 256, g, g)`` image embeddings.
        prompt_encoder: segment-anything's, for ``image_size`` and ``g``.
        mask_decoder: segment-anything's.
        image_size: Side of the prompt frame, in pixels.
        input_size: Side of the image encoder's input, in pixels.
        embedding_size: ``g``, side of the image embedding, in cells.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        *,
        image_size: int,
        input_size: int,
        embedding_size: int,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.image_size = image_size
        self.input_size = input_size
        self.embedding_size = embedding_size


def assemble(
    image_encoder: nn.Module,
    *,
    image_size: int,
    input_size: int,
    embedding_size: int,
    prompt_encoder: type[PromptEncoder] = PromptEncoder,
) -> Sam:
    """Build a SAM from ``image_encoder`` and a new prompt encoder and mask decoder of SAM's published sizes."""
    return Sam(
        image_encoder,
        prompt_encoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(embedding_size, embedding_size),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        image_size=image_size,
        input_size=input_size,
        embedding_size=embedding_size,
    )


def save_checkpoint(sam: Sam, directory: Path) -> None:
    """Write all weights of a SAM to ``directory`` as safetensors."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    save_file(tensors, directory / WEIGHTS)


def load_weights(sam: Sam, path: Path) -> Sam:
    """Load safetensors into ``sam`` strictly; half precision is converted to fp32.

    Raises:
        InputError: The file is missing, is damaged, holds values that are not finite, or belongs to another model.
    """
    try:
        state = tensor_file.safetensors(path, remedy="recreate it")
    except MissingFileError:
        raise InputError(f"{path} does not exist: run `dvc repro` or `dvc pull`.") from None
    load_state(sam, state, path)
    return sam


def load_state(sam: Sam, state: dict[str, Tensor], source: Path) -> None:
    """Load a state dict strictly, with a one-line error on mismatch.

    Raises:
        InputError: Keys or shapes differ from the model's, or a module rejects the weights' extra state.
    """
    own = sam.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    # Extra state is checked by its module, whose error is more specific than a shape.
    weights = {key for key in own.keys() & state.keys() if not key.endswith("_extra_state")}
    shapes = [
        key
        for key in weights
        if state[key].shape != own[key].shape or state[key].is_floating_point() != own[key].is_floating_point()
    ]
    if missing or unknown or shapes:
        faults = [
            f"{len(keys)} {what} (first: {keys[0]})"
            for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape or type", sorted(shapes)))
            if keys
        ]
        raise InputError(f"{source} does not hold the weights of this model: keys {', '.join(faults)}. Name its model.")
    try:
        sam.load_state_dict(state, strict=True)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
