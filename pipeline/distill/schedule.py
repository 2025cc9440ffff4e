"""Weights of the layers over time in layer-wise distillation.

Source: SAM-Lightening (arXiv 2403.09195): the first layer has full weight from the start, later ones gain it by a
piecewise function of time, focus layers are exempt. The paper does not publish the function; this one is ours.
"""


def layer_weights(step: int, *, layers: int, focus: int, ramp_steps: int) -> tuple[float, ...]:
    """Weights in [0, 1] of all layers at a step, from the image to the embedding.

    Layer l of L has weight 0 until step ``(l - 1) / L`` of ``ramp_steps``, then gains weight linearly until layer l + 1
    begins. The first layer and the last ``focus`` layers have weight 1 from the start.

    Args:
        step: Counted from 0.
        layers: L.
        focus: Number of last layers that are exempt.
        ramp_steps: Steps after which all layers have weight 1.
    """
    wait = ramp_steps / layers
    ramp = [1.0 if wait == 0 else min(1.0, max(0.0, step / wait - layer)) for layer in range(layers)]
    return tuple(1.0 if layer == 0 or layer >= layers - focus else ramp[layer] for layer in range(layers))
