"""SAM's prompt encoder and mask decoder in one forward, over segment-anything's own parameters.

Source: segment-anything, ``modeling/prompt_encoder.py``, ``mask_decoder.py`` and ``transformer.py``. Weights and
results are unchanged; only the order of the matrix products differs. The published decoder spends nearly all its time
projecting every image token for about seven prompt tokens. Matrix products are associative, so here

- token to image: the key projection is folded into the queries, and the value projection is applied after attention;
- image to token: query and key projections are folded together, as are value and output projections;
- without a mask prompt, all prompts of an image share its image tokens until the first block updates them (exported
  files always take a mask, so they do not);
- only the output tokens take part in the last attention, since nothing reads the others after it;
- the two transposed convolutions have kernels as large as their strides, so each is one product per image token: image
  tokens keep their order up to the masks, and only the masks are rearranged into rows and columns.

The bias of a key projection adds a constant to each row of scores, which softmax ignores, so it is omitted. There is
no boolean indexing and no ``repeat_interleave``: the graph exports with dynamic numbers of prompts and points.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.dense_prompts import DensePromptEncoder
from pipeline.models.precision import fp32
from pipeline.models.published import Attention, PromptEncoder, TwoWayAttentionBlock
from pipeline.models.sam import Sam
from pipeline.ops.point_labels import LABELS


def freeze_omitted(decoder: nn.Module) -> None:
    """Exclude the key biases that `decode` omits from training, since no output depends on them."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("attn_token_to_image.k_proj.bias"):
            parameter.requires_grad_(False)


def decode(
    sam: Sam,
    image_embeddings: Float[Tensor, "b c g g"],
    point_coords: Float[Tensor, "b p n 2"],
    point_labels: Float[Tensor, "b p n"],
    mask_input: Float[Tensor, "b p 1 m m"] | None = None,
    has_mask_input: Float[Tensor, "1"] | None = None,
) -> tuple[Float[Tensor, "b p 4 m m"], Float[Tensor, "b p 4"]]:
    """Decode masks for P prompts on each of B images.

    Args:
        sam: Model whose prompt encoder and mask decoder are used.
        image_embeddings: ``(B, 256, g, g)``.
        point_coords: ``(B, P, N, 2)``, x and y in the prompt frame.
        point_labels: ``(B, P, N)``: 1 foreground, 0 background, 2 and 3 a box's upper left and lower right corner,
            -1 padding. A prompt without a box needs one padding point, as segment-anything adds.
        mask_input: ``(B, P, 1, 4g, 4g)`` logits of an earlier mask, or None.
        has_mask_input: ``(1,)``: 1 to use ``mask_input``, 0 to ignore it, for exported graphs that always take one.

    Returns:
        Low-resolution logits ``(B, P, 4, 4g, 4g)`` and predicted IoUs ``(B, P, 4)``; token 0 is the single mask, 1 to 3
        are the multimask outputs.
    """
    masks, iou_predictions, _ = decode_with_tokens(
        sam, image_embeddings, point_coords, point_labels, mask_input, has_mask_input
    )
    return masks, iou_predictions


def decode_with_tokens(
    sam: Sam,
    image_embeddings: Float[Tensor, "b c g g"],
    point_coords: Float[Tensor, "b p n 2"],
    point_labels: Float[Tensor, "b p n"],
    mask_input: Float[Tensor, "b p 1 m m"] | None = None,
    has_mask_input: Float[Tensor, "1"] | None = None,
) -> tuple[Float[Tensor, "b p 4 m m"], Float[Tensor, "b p 4"], Float[Tensor, "b p 5 c"]]:
    """`decode`, plus the two-way transformer's output tokens ``(B, P, 5, 256)``: the IoU token, then 4 mask tokens."""
    return decode_tokens(
        sam, image_tokens(sam, image_embeddings, mask_input, has_mask_input), point_coords, point_labels
    )


def image_tokens(
    sam: Sam,
    image_embeddings: Float[Tensor, "b c g g"],
    mask_input: Float[Tensor, "b m 1 h h"] | None = None,
    has_mask_input: Float[Tensor, "1"] | None = None,
) -> Float[Tensor, "s k c"]:
    """Image tokens: ``(B * M, g * g, 256)`` with M mask prompts per image, ``(B, g * g, 256)`` without."""
    prompt: PromptEncoder = sam.prompt_encoder
    image = image_embeddings.flatten(2).transpose(1, 2).contiguous()  # a transposed view slows every reader
    no_mask = prompt.no_mask_embed.weight
    if mask_input is None:
        return image + no_mask
    dense = prompt.mask_downscaling(mask_input.flatten(0, 1)).flatten(2).transpose(1, 2)
    return _add_per_prompt(
        image, dense if has_mask_input is None else has_mask_input * dense + (1 - has_mask_input) * no_mask
    )


def decode_tokens(
    sam: Sam,
    image: Float[Tensor, "s k c"],
    point_coords: Float[Tensor, "b p n 2"],
    point_labels: Float[Tensor, "b p n"],
) -> tuple[Float[Tensor, "b p 4 m m"], Float[Tensor, "b p 4"], Float[Tensor, "b p 5 c"]]:
    """`decode_with_tokens` from `image_tokens`, given per image or per prompt."""
    b, p = point_coords.shape[:2]
    sparse = _embed_points(sam, point_coords.flatten(0, 1), point_labels.flatten(0, 1))
    if isinstance(sam.prompt_encoder, DensePromptEncoder):
        with fp32(image.device):
            maps = sam.prompt_encoder.embed_maps(point_coords.flatten(0, 1).float(), point_labels.flatten(0, 1).float())
        image = _add_per_prompt(image, maps)
    decoder = sam.mask_decoder
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
    tokens, image = _two_way(sam, tokens, image, output_tokens.shape[0])
    masks, iou_predictions = _read_out(sam, tokens, image)
    return masks.unflatten(0, (b, p)), iou_predictions.unflatten(0, (b, p)), tokens.unflatten(0, (b, p))


# Below, the prompts of all images are flattened to N = B * P, because engines run three axes best. Image tokens are
# (S, K, 256) with K = g * g; S is B while the prompts of an image share them, and N afterwards.


def _add_per_prompt(image: Tensor, update: Tensor) -> Tensor:
    """Add ``update`` ``(N, K, 256)`` to image tokens ``(S, K, 256)``, broadcast over an image's prompts."""
    return (image[:, None] + update.reshape(image.shape[0], -1, *update.shape[1:])).flatten(0, 1)


def _embed_points(sam: Sam, coords: Tensor, labels: Tensor) -> Tensor:
    """Sparse embeddings ``(N, points, 256)``: positional encoding plus a label embedding."""
    prompt: PromptEncoder = sam.prompt_encoder
    with fp32(coords.device):  # in bf16 a coordinate of 1024 pixels would be off by up to 1
        encoding = prompt.pe_layer._pe_encoding((coords + 0.5) / sam.image_size)
    # A product instead of segment-anything's in-place writes by boolean mask, which export to NonZero and ScatterND.
    label_embeddings = torch.cat([prompt.not_a_point_embed.weight, *(e.weight for e in prompt.point_embeddings)])
    one_hot = torch.stack([(labels == label).to(encoding.dtype) for label in LABELS], dim=-1)
    return encoding * (1 - one_hot[..., :1]) + one_hot @ label_embeddings


def _two_way(sam: Sam, tokens: Tensor, image: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Run the two-way transformer on tokens ``(N, T, 256)`` and image tokens ``(S, K, 256)``.

    Returns:
        The first ``outputs`` tokens, and the image tokens per prompt.
    """
    transformer = sam.mask_decoder.transformer
    with fp32(tokens.device):
        position = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).contiguous()
    token_position = tokens
    for block in transformer.layers:
        tokens, image = _block(block, tokens, image, token_position, position)
    tokens, queries = tokens[:, :outputs], (tokens + token_position)[:, :outputs]
    attended = _token_to_image(transformer.final_attn_token_to_image, queries, image, image + position)
    return transformer.norm_final_attn(tokens + attended), image


def _block(
    block: TwoWayAttentionBlock, tokens: Tensor, image: Tensor, token_position: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    if block.skip_first_layer_pe:
        tokens = _self_attention(block.self_attn, tokens, tokens)
    else:
        tokens = tokens + _self_attention(block.self_attn, tokens + token_position, tokens)
    tokens = block.norm1(tokens)
    positioned = image + position
    attended = _token_to_image(block.cross_attn_token_to_image, tokens + token_position, image, positioned)
    tokens = block.norm2(tokens + attended)
    tokens = block.norm3(tokens + block.mlp(tokens))
    attended = _image_to_token(block.cross_attn_image_to_token, positioned, tokens + token_position, tokens)
    return tokens, block.norm4(_add_per_prompt(image, attended))


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(N, T, heads * d)`` to ``(N, heads, T, d)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _self_attention(attention: Attention, queries_keys: Tensor, values: Tensor) -> Tensor:
    heads = attention.num_heads
    q, k = _heads(attention.q_proj(queries_keys), heads), _heads(attention.k_proj(queries_keys), heads)
    out = F.scaled_dot_product_attention(q, k, _heads(attention.v_proj(values), heads))
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def _token_to_image(attention: Attention, queries: Tensor, image: Tensor, positioned: Tensor) -> Tensor:
    """Attend from tokens ``(N, T, 256)`` to image tokens ``(S, K, 256)``; ``positioned`` includes their positions."""
    heads = attention.num_heads
    q = _heads(attention.q_proj(queries), heads)  # (N, H, T, d)
    key_weight = attention.k_proj.weight.unflatten(0, (heads, -1))  # (H, d, 256)
    folded = (q @ key_weight) / math.sqrt(q.shape[-1])  # (N, H, T, 256)
    # If prompts share image tokens, one product serves all of them.
    weights = (folded.reshape(image.shape[0], -1, folded.shape[-1]) @ positioned.transpose(1, 2)).softmax(dim=-1)
    pooled = (weights @ image).reshape(-1, *folded.shape[1:])
    value_weight = attention.v_proj.weight.unflatten(0, (heads, -1))  # (H, d, 256)
    # Weights sum to one, so the value projection's bias passes through unchanged.
    out = (pooled @ value_weight.transpose(1, 2)).transpose(1, 2).flatten(2) + attention.v_proj.bias
    return attention.out_proj(out)


def _image_to_token(attention: Attention, positioned: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend from image tokens with positions, ``(S, K, 256)``, to tokens ``(N, T, 256)``: ``(N, K, 256)``."""
    heads = attention.num_heads
    k = _heads(attention.k_proj(keys), heads)  # (N, H, T, d)
    v = _heads(attention.v_proj(values), heads)
    query_weight = attention.q_proj.weight.unflatten(0, (heads, -1))  # (H, d, 256)
    scale = 1 / math.sqrt(k.shape[-1])
    folded = k @ query_weight * scale  # (N, H, T, 256)
    bias = k @ attention.q_proj.bias.unflatten(0, (heads, -1, 1)) * scale  # (N, H, T, 1)
    # Image tokens are the last axis, so that softmax over seven tokens is vectorised along memory.
    scores = folded.reshape(positioned.shape[0], -1, folded.shape[-1]) @ positioned.transpose(1, 2)
    weights = (scores.reshape(*folded.shape[:3], -1) + bias).softmax(dim=2).flatten(1, 2)  # (N, H*T, K)
    out_weight = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # (H, d, 256)
    # Each head's weights sum to one, so its share of the output bias can be folded into its values.
    folded_values = (v @ out_weight).flatten(1, 2) + attention.out_proj.bias / heads  # (N, H*T, 256)
    return weights.transpose(1, 2) @ folded_values


def _read_out(sam: Sam, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Upscale image tokens and multiply by each mask token's hypernetwork output: ``(N, 4, 4g, 4g)`` and ``(N, 4)``."""
    decoder = sam.mask_decoder
    g = sam.embedding_size
    first, norm, gelu, second, _ = decoder.output_upscaling
    upscaled = _quarters(first, image)  # (N, g*g*4, 64): a token's quarters, row by row
    with fp32(upscaled.device):  # in bf16 its gradients are sums of thousands of rows, and 20 to 90 % off
        upscaled = gelu(F.layer_norm(upscaled.float(), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    upscaled = gelu(_quarters(second, upscaled))  # (N, g*g*16, 32)
    hyper = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    masks = hyper @ upscaled.transpose(1, 2)
    # Pixels are ordered by cell, quarter of the cell, quarter of the quarter; each has a row and a column.
    masks = masks.flatten(0, 1).unflatten(1, (g, g, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6)
    return masks.reshape(*hyper.shape[:2], 4 * g, 4 * g), decoder.iou_prediction_head(tokens[:, 0])


def _quarters(upscaling: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution with a kernel and a stride of 2: ``(N, K, in)`` to ``(N, K * 4, out)``."""
    assert upscaling.bias is not None
    weight = upscaling.weight.permute(2, 3, 1, 0)  # (2, 2, out, in)
    return F.linear(x, weight.flatten(0, 2), upscaling.bias.repeat(4)).reshape(x.shape[0], -1, weight.shape[2])
