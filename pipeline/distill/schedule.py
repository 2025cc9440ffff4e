"""Schedule of layer weights in layer-wise distillation.

Source: SAM-Lightening (arXiv 2403.09195): the first layer and the focus layers have full weight from the start, the
others gain it by a piecewise function of time. The paper does not publish that function; this one is the project's.
"""


def layer_weights(step: int, *, layers: int, focus: int, ramp_steps: int) -> tuple[float, ...]:
    """Return the weight in [0, 1] of each layer at a step, from input to output.

    Layer l of L has weight 0 until step ``(l - 1) / L`` of ``ramp_steps``, then gains weight linearly until layer l + 1
    begins. The first layer and the last ``focus`` layers have weight 1 from the start.

    Args:
        step: Counted from 0.
        layers: L.
        focus: Number of final layers with weight 1 from the start.
        ramp_steps: Number of steps until all layers have weight 1.
    """
    wait = ramp_steps / layers
    ramp = [1.0 if wait == 0 else min(1.0, max(0.0, step / wait - layer)) for layer in range(layers)]
    return tuple(1.0 if layer == 0 or layer >= layers - focus else ramp[layer] for layer in range(layers))
